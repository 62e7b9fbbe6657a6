// ---- frames of somebody else's HTML: as high as what they hold ---------------------------------------------------

// Readable from here because the frames are of this page's origin; nothing runs in them that could read this page.
function fit(frame) {
  const body = frame.contentDocument?.body;
  if (!body) return;
  const root = body.ownerDocument.documentElement;
  const scrollbar = root.scrollWidth > root.clientWidth ? 18 : 0;
  const height = Math.max(body.getBoundingClientRect().height, body.scrollHeight);
  frame.style.height = `${Math.ceil(height) + scrollbar + frame.offsetHeight - frame.clientHeight}px`;
}

const frames = [...document.querySelectorAll("iframe.frame")];
for (const frame of frames) {
  const follow = () => {
    fit(frame);
    // What is unfolded in it makes it higher, and so does a narrower window.
    if (frame.contentDocument?.body) new ResizeObserver(() => fit(frame)).observe(frame.contentDocument.body);
  };
  frame.addEventListener("load", follow);
  follow();
}

// Paper is narrower, and what is on it cannot be scrolled: a frame takes its width there, and the height for it.
function setWidth(width) {
  for (const frame of frames) {
    frame.style.width = width;
    fit(frame);
  }
}
addEventListener("beforeprint", () => setWidth(`${PAPER_WIDTH}px`));
addEventListener("afterprint", () => setWidth(""));

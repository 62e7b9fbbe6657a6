// ---- arrow keys among tokens: one tab stop a row ---------------------------------------------------------------

function neighbour(token, key) {
  const grid = token.closest("[data-grid]");
  const rows = [...grid.querySelectorAll(grid.tagName === "TABLE" ? "tr" : ".row")]
    .map((row) => [...row.querySelectorAll("[data-tip]")])
    .filter((row) => row.length);
  const at = rows.findIndex((row) => row.includes(token));
  const place = rows[at].indexOf(token);
  const clamp = (row) => row && row[Math.min(place, row.length - 1)];
  const moves = {
    ArrowRight: () => rows[at][place + 1],
    ArrowLeft: () => rows[at][place - 1],
    ArrowDown: () => clamp(rows[at + 1]),
    ArrowUp: () => clamp(rows[at - 1]),
    Home: () => rows[at][0],
    End: () => rows[at][rows[at].length - 1],
  };
  return moves[key] ? (moves[key]() ?? token) : null;
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") return hideTip();
  const token = tokenOf(event.target);
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  const next = neighbour(token, event.key);
  if (!next) return;
  event.preventDefault();
  const row = next.closest("tr, .row");
  row.querySelectorAll('[data-tip][tabindex="0"]').forEach((other) => other.setAttribute("tabindex", "-1"));
  next.setAttribute("tabindex", "0");
  next.focus();
  next.scrollIntoView({ block: "nearest", inline: "nearest" });
});

// A box that scrolls needs a tab stop of its own, unless something in it has one. What is folded away keeps it.
const scrollers = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (!target.clientWidth) continue;
    const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    if (scrolls && !target.querySelector('[tabindex="0"], a[href], button')) target.setAttribute("tabindex", "0");
    else target.removeAttribute("tabindex");
  }
});
document.querySelectorAll(".scroll").forEach((box) => scrollers.observe(box));

// Everything here improves a page that is complete without it.
const root = document.documentElement;
root.classList.add("js");
const dark = matchMedia("(prefers-color-scheme: dark)");
const tip = document.getElementById("tip");

// ---- one tooltip for tokens and charts ------------------------------------------------------------------------

function placeTip(left, top, bottom) {
  const margin = 8;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = Math.min(Math.max(margin, left), root.clientWidth - width - margin);
  const above = top - height - margin;
  // Set through the style object: the content-security policy forbids style attributes, not this.
  tip.style.left = `${x}px`;
  tip.style.top = `${above >= margin ? above : Math.min(bottom + margin, innerHeight - height - margin)}px`;
}

function hideTip() {
  tip.hidden = true;
  document.querySelectorAll("[aria-describedby=tip]").forEach((token) => token.removeAttribute("aria-describedby"));
}

function showTokenTip(token) {
  hideTip();
  tip.replaceChildren(token.dataset.tip);
  token.setAttribute("aria-describedby", "tip");
  const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
  placeTip(box.left, box.top, box.bottom);
}

const shortened = (value) =>
  typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value;

// With labels, a datum's labelled fields under the reader's words; without, what the chart's author chose to show.
function tipLines(value, labels) {
  const names = Object.keys(labels);
  if (names.length) return names.map((name) => [labels[name], shortened(value[name]) ?? "–"]);
  return typeof value === "object" && !Array.isArray(value) ? Object.entries(value) : [["", value]];
}

function showChartTip(event, value, labels) {
  if (value === null || value === undefined || value === "") return hideTip();
  tip.replaceChildren(
    ...tipLines(value, labels).map(([name, figure]) => {
      const line = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = name;
      line.append(...(name ? [label, " "] : []), String(figure));
      return line;
    }),
  );
  placeTip(event.clientX + 12, event.clientY - 4, event.clientY + 12);
}

const tokenOf = (target) => (target instanceof Element ? target.closest("[data-tip]") : null);
addEventListener("pointerover", (event) => {
  const token = tokenOf(event.target);
  if (token) showTokenTip(token);
});
addEventListener("pointerout", (event) => {
  if (!tokenOf(event.target)) return;
  const focused = tokenOf(document.activeElement);
  if (focused && focused.matches(":focus-visible")) showTokenTip(focused);
  else hideTip();
});
addEventListener("focusin", (event) => {
  const token = tokenOf(event.target);
  if (token) showTokenTip(token);
  else hideTip();
});
addEventListener("focusout", hideTip);
addEventListener("scroll", () => {
  const focused = tokenOf(document.activeElement);
  if (focused && !tip.hidden) showTokenTip(focused);
  else hideTip();
}, { capture: true, passive: true });

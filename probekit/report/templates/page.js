// The report's own behaviour: charts in the reader's theme, hover text for tokens and charts, arrow keys, copying.
// Everything here improves a page that is complete without it.
(() => {
  "use strict";
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

  // A box that scrolls needs a tab stop of its own, unless something in it has one.
  const scrollers = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
      if (scrolls && !target.querySelector('[tabindex="0"]')) target.setAttribute("tabindex", "0");
      else target.removeAttribute("tabindex");
    }
  });
  document.querySelectorAll(".scroll").forEach((box) => scrollers.observe(box));

  // ---- charts ----------------------------------------------------------------------------------------------------

  // Past this many marks, one canvas is drawn faster than as many SVG elements.
  const MOST_SVG_MARKS = 3000;
  const PAPER_WIDTH = 660;

  function theme(colours, element) {
    const style = getComputedStyle(element);
    const variable = (name) => style.getPropertyValue(`--${name}`).trim();
    const levels = Array.from({ length: 16 }, (_, level) => variable(`level-${level}`));
    const categories = Array.from({ length: 8 }, (_, index) => variable(`category-${index}`));
    const text = { labelColor: variable("muted"), titleColor: variable("ink"), labelFontSize: 12, titleFontSize: 12 };
    return {
      font: getComputedStyle(document.body).fontFamily,
      background: "transparent",
      padding: 4,
      view: { stroke: null },
      mark: { color: categories[0], aria: false },
      line: { strokeWidth: 2, strokeCap: "butt", strokeJoin: "round" },
      text: { color: variable("ink") },
      rule: { color: variable("muted") },
      axis: {
        ...text,
        aria: false,
        titleFontWeight: 600,
        titlePadding: 10,
        labelPadding: 6,
        labelLimit: 140,
        titleLimit: 480,
        gridColor: variable("rule"),
        domainColor: variable("edge"),
        tickColor: variable("edge"),
      },
      axisY: { domain: false, ticks: false },
      legend: { ...text, aria: false, titleFontWeight: 600, symbolLimit: 40 },
      title: { color: variable("ink"), subtitleColor: variable("muted"), anchor: "start", fontWeight: 600, limit: 640 },
      header: text,
      range: {
        category: colours.length ? colours.map(variable) : categories,
        heatmap: levels,
        ramp: levels,
        ordinal: levels.slice(3),
      },
    };
  }

  const finishers = new Map();

  function addStage(box, name) {
    const stage = document.createElement("div");
    stage.className = name;
    box.append(stage);
    return stage;
  }

  function embed(stage, spec, { colours, labels }, renderer) {
    return globalThis.probekitEmbed(stage, spec, {
      mode: "vega-lite",
      ast: true, // Vega's interpreter: the content-security policy forbids eval
      actions: false, // the menu opens blob windows, which the policy forbids
      defaultStyle: false,
      renderer,
      tooltip: (handler, event, item, value) => showChartTip(event, value, labels),
      logLevel: 0,
      config: theme(colours, stage),
    });
  }

  async function draw(box) {
    const { spec, ...reading } = JSON.parse(document.getElementById(box.dataset.chart).textContent);
    const marks = spec.data && Array.isArray(spec.data.values) ? spec.data.values.length : 0;
    spec.description = box.getAttribute("aria-label");
    const isDark = dark.matches;
    finishers.get(box)?.();
    finishers.delete(box);
    box.replaceChildren();
    try {
      const drawn = [await embed(addStage(box, "stage"), spec, reading, marks > MOST_SVG_MARKS ? "canvas" : "svg")];
      if (isDark) {
        // Paper is white: printing cannot wait for a chart to be drawn again, so its light copy is ready beforehand.
        const sized = spec.width === "container" ? { ...spec, width: PAPER_WIDTH } : spec;
        drawn.push(await embed(addStage(box, "stage paper"), sized, reading, "svg"));
      }
      finishers.set(box, () => drawn.forEach((view) => view.finalize()));
      box.dataset.drawn = isDark ? "dark" : "light";
    } catch (error) {
      const remark = document.createElement("p");
      remark.className = "remark";
      remark.textContent = `This chart could not be drawn (${error.message}); its data are below.`;
      box.replaceChildren(remark);
      box.dataset.drawn = "failed";
    }
  }

  async function drawAll() {
    hideTip();
    const started = dark.matches;
    for (const box of document.querySelectorAll("[data-chart]")) {
      await draw(box);
      if (dark.matches !== started) return; // the theme changed meanwhile, and its own drawAll is under way
    }
  }

  if (globalThis.probekitEmbed) {
    drawAll();
    dark.addEventListener("change", drawAll);
  }

  // ---- printing: what is folded away is opened, and put back afterwards ------------------------------------------

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.fold:not([open])")];
    opened.forEach((fold) => fold.setAttribute("open", ""));
  });
  addEventListener("afterprint", () => opened.forEach((fold) => fold.removeAttribute("open")));

  // ---- copying the command ---------------------------------------------------------------------------------------

  function select(element) {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    const source = document.getElementById(button.dataset.copy);
    const status = button.parentElement.querySelector("[role=status]");
    button.hidden = false;
    button.addEventListener("click", async () => {
      let copied = false;
      try {
        await navigator.clipboard.writeText(source.textContent);
        copied = true;
      } catch {
        copied = select(source);
      }
      status.textContent = copied ? "Copied" : "Selected: press Ctrl+C or ⌘C to copy";
      setTimeout(() => (status.textContent = ""), 4000);
    });
  }
})();

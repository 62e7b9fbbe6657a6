// ---- charts ----------------------------------------------------------------------------------------------------

// Past this many marks, one canvas is drawn faster than as many SVG elements.
const MOST_SVG_MARKS = 3000;
const PAPER_WIDTH = 660;

function theme(colours, element) {
  const style = getComputedStyle(element);
  const variable = (name) => style.getPropertyValue(`--${name}`).trim();
  const levels = Array.from({ length: 16 }, (_, level) => variable(`level-${level}`));
  const categories = Array.from({ length: 8 }, (_, index) => variable(`category-${index}`));
  const known = {
    $font: getComputedStyle(document.body).fontFamily,
    $categories: colours.length ? colours.map(variable) : categories,
    $levels: levels,
    $steps: levels.slice(3),
  };
  const filled = (part) => {
    if (typeof part === "string" && part.startsWith("$")) return known[part] ?? variable(part.slice(1));
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, filled(value)]));
  };
  return filled(chartTheme);
}

const themeElement = document.getElementById("chart-theme");
const chartTheme = themeElement ? JSON.parse(themeElement.textContent) : {};

// Columns as the page carries them, as rows under the names of their fields, and the reader's words for these.
function readData({ fields, headers, columns, levels }) {
  const whole = columns.map((column, index) => {
    const texts = Object.hasOwn(levels, fields[index]) && levels[fields[index]];
    return texts ? column.map((place) => texts[place]) : column;
  });
  const row = (_, at) => Object.fromEntries(fields.map((name, index) => [name, whole[index][at]]));
  return {
    rows: (whole[0] ?? []).map(row),
    headers: Object.fromEntries(fields.map((name, index) => [name, headers[index]])),
  };
}

// A chart as the page carries it: its spec, its rows as objects, and what a reader needs beside them.
function readChart(box) {
  const chart = JSON.parse(document.getElementById(box.dataset.chart).textContent);
  const { data, path, spec } = chart;
  if (data) {
    Object.assign(chart, readData(data));
  } else if (path.length) {
    chart.rows = path.reduce((part, key) => part[key], spec).map((row) =>
      row !== null && typeof row === "object" && !Array.isArray(row) ? row : { data: row },
    );
    chart.headers = Object.fromEntries(chart.rows.flatMap((row) => Object.keys(row)).map((name) => [name, name]));
  }
  return chart;
}

function withoutLegends(part) {
  if (part === null || typeof part !== "object") return part;
  if (Array.isArray(part)) return part.map(withoutLegends);
  return Object.fromEntries(
    Object.entries(part).map(([key, value]) => [key, key === "legend" ? null : withoutLegends(value)]),
  );
}

// The spec as it is drawn on a page: with its key beside it in HTML; or as a figure, whole and with its own legend.
function drawable(chart, asFigure) {
  const spec = chart.keyed && !asFigure ? withoutLegends(chart.spec) : { ...chart.spec };
  if (chart.data) {
    spec.data = { values: chart.rows };
    // The layer that answers a pointer is nothing for a figure.
    if (asFigure && spec.layer) spec.layer = spec.layer.filter((layer) => !layer.params);
  }
  return spec;
}

const finishers = new Map();

function addStage(box, name) {
  const stage = document.createElement("div");
  stage.className = name;
  box.append(stage);
  return stage;
}

const opaque = (background) => Boolean(background) && background !== "transparent";

function embed(stage, spec, { colours, labels }, renderer) {
  return globalThis.probekitEmbed(stage, spec, {
    mode: "vega-lite",
    ast: true, // Vega's interpreter: the content-security policy forbids eval
    actions: false, // the menu opens blob windows, which the policy forbids
    defaultStyle: false,
    renderer,
    tooltip: (handler, event, item, value) => showChartTip(event, value, labels),
    logLevel: 0,
    // An author's own background comes with the author's own colours.
    config: opaque(spec.background ?? spec.config?.background) ? {} : theme(colours, stage),
  });
}

const onPaper = (spec) => (spec.width === "container" ? { ...spec, width: PAPER_WIDTH } : spec);

async function draw(box, forPaper) {
  const chart = readChart(box);
  const spec = { ...drawable(chart, false), description: box.getAttribute("aria-label") };
  const marks = spec.data && Array.isArray(spec.data.values) ? spec.data.values.length : 0;
  const renderer = marks > MOST_SVG_MARKS ? "canvas" : "svg";
  if (forPaper) {
    finishers.get(box).push(await embed(addStage(box, "stage paper"), onPaper(spec), chart, renderer));
    return;
  }
  const theme = dark.matches ? "dark" : "light";
  finishers.get(box)?.forEach((view) => view.finalize());
  box.replaceChildren();
  try {
    finishers.set(box, [await embed(addStage(box, "stage"), spec, chart, renderer)]);
    box.dataset.drawn = theme;
  } catch (error) {
    finishers.set(box, []);
    const remark = document.createElement("p");
    remark.className = "remark";
    remark.textContent = `This chart could not be drawn (${error.message}); its data are below.`;
    box.replaceChildren(remark);
    box.dataset.drawn = "failed";
  }
}

let drawings = 0;

async function drawAll() {
  const mine = ++drawings;
  hideTip();
  delete root.dataset.charts;
  const started = dark.matches;
  const boxes = [...document.querySelectorAll("[data-chart]")];
  // Paper is white: printing cannot wait for a chart to be drawn again, so of a dark one a light copy is made ready.
  for (const forPaper of started ? [false, true] : [false]) {
    for (const box of boxes) {
      if (forPaper && box.dataset.drawn === "failed") continue;
      await draw(box, forPaper);
      await new Promise((resolve) => setTimeout(resolve)); // what the reader does in the meantime comes first
      if (drawings !== mine) return; // the theme changed meanwhile, and its own drawAll is under way
    }
  }
  root.dataset.charts = "drawn";
}

if (globalThis.probekitEmbed) {
  // Text first: a large report can be read while its charts are drawn.
  addEventListener("load", () => setTimeout(drawAll));
  dark.addEventListener("change", drawAll);
}

// ---- saving a chart, and its data -------------------------------------------------------------------------------

const SAVED_SCALE = 3; // pixels of a PNG for each of the page's

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function csv({ rows, headers }) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const names = Object.keys(headers);
  const lines = [names.map((name) => headers[name]), ...rows.map((row) => names.map((name) => row[name]))];
  return lines.map((line) => line.map(cell).join(",") + "\n").join("");
}

function json({ rows, headers }) {
  const renamed = ([name, value]) => [headers[name] ?? name, value];
  return JSON.stringify(rows.map((row) => Object.fromEntries(Object.entries(row).map(renamed))), null, 1) + "\n";
}

// The chart as a figure for paper: light and with its legend, whatever the page shows.
async function withFigure(chart, use) {
  const stage = addStage(document.body, "paper drawing");
  const drawn = await embed(stage, onPaper(drawable(chart, true)), chart, "svg");
  drawn.view.background("white");
  await drawn.view.runAsync();
  try {
    return await use(drawn.view);
  } finally {
    drawn.finalize();
    stage.remove();
  }
}

async function picture(view) {
  const canvas = await view.toCanvas(SAVED_SCALE);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const SAVERS = {
  csv: async (chart) => [csv(chart), "text/csv"],
  json: async (chart) => [json(chart), "application/json"],
  svg: async (chart) => [await withFigure(chart, (view) => view.toSVG()), "image/svg+xml"],
  png: async (chart) => [await withFigure(chart, picture), "image/png"],
};

for (const tools of document.querySelectorAll("[data-saves]")) {
  const box = document.querySelector(`[data-chart="${tools.dataset.saves}"]`);
  const status = tools.querySelector("[role=status]");
  tools.hidden = false;
  for (const button of tools.querySelectorAll("button")) {
    button.addEventListener("click", async () => {
      const name = `${tools.dataset.name}.${button.value}`;
      try {
        save(name, ...(await SAVERS[button.value](readChart(box))));
        status.textContent = `Saved ${name}`;
      } catch (error) {
        status.textContent = `This could not be saved: ${error.message}`;
      }
      setTimeout(() => (status.textContent = ""), 4000);
    });
  }
}

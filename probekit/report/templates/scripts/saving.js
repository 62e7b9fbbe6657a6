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
  const cellsOf = (row) => names.map((name) => (Object.hasOwn(row, name) ? row[name] : null));
  const lines = [names.map((name) => headers[name]), ...rows.map(cellsOf)];
  return lines.map((line) => line.map(cell).join(",") + "\n").join("");
}

function json({ rows, headers }) {
  const renamed = ([name, value]) => [headers[name] ?? name, value];
  return JSON.stringify(rows.map((row) => Object.fromEntries(Object.entries(row).map(renamed))), null, 1) + "\n";
}

// The chart as a figure for paper: light and with its legend, whatever the page shows.
async function withFigure(chart, use) {
  const stage = addStage(document.body, "paper drawing");
  let drawn = null;
  try {
    drawn = await embed(stage, onPaper(drawable(chart, true)), chart, "svg");
    drawn.view.background("white");
    await drawn.view.runAsync();
    return await use(drawn.view);
  } finally {
    drawn?.finalize();
    stage.remove();
  }
}

async function pixelsOf(canvas) {
  const content = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!content) throw new Error("it has more pixels than this browser draws; save it as SVG");
  return content;
}

const picture = async (view) => pixelsOf(await view.toCanvas(SAVED_SCALE));

function asPixels(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width * SAVED_SCALE, image.height * SAVED_SCALE];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return pixelsOf(canvas);
}

// The bytes of a picture of that type, if it is one.
function bytesOf(image, type) {
  const [head, data] = image.src.split(",");
  return head.includes(type) ? new Blob([Uint8Array.from(atob(data), (char) => char.charCodeAt(0))], { type }) : null;
}

// For each kind of file: what goes into it, of a chart or of a picture. A picture may have several tables of data.
const CHART = {
  csv: async (box) => [[csv(readChart(box)), "text/csv"]],
  json: async (box) => [[json(readChart(box)), "application/json"]],
  svg: async (box) => [[await withFigure(readChart(box), (view) => view.toSVG()), "image/svg+xml"]],
  png: async (box) => [[await withFigure(readChart(box), picture), "image/png"]],
};
const PICTURE = {
  csv: async (image) => tablesOf(image).map((table) => [csv(table), "text/csv"]),
  json: async (image) => tablesOf(image).map((table) => [json(table), "application/json"]),
  svg: async (image) => [[bytesOf(image, "image/svg+xml")]],
  png: async (image) => [[bytesOf(image, "image/png") ?? (await asPixels(image))]],
};
const tablesOf = (image) => JSON.parse(document.getElementById(image.dataset.picture).textContent).map(readData);

for (const tools of document.querySelectorAll("[data-saves]")) {
  const source = tools.dataset.saves;
  const chart = document.querySelector(`[data-chart="${source}"]`);
  const [savers, box] = chart ? [CHART, chart] : [PICTURE, document.querySelector(`[data-picture="${source}"]`)];
  const status = tools.querySelector("[role=status]");
  tools.hidden = false;
  for (const button of tools.querySelectorAll("button")) {
    button.addEventListener("click", async () => {
      try {
        const contents = await savers[button.value](box);
        const names = contents.map(
          (_, number) => `${tools.dataset.name}${contents.length > 1 ? `-${number + 1}` : ""}.${button.value}`,
        );
        contents.forEach((content, number) => save(names[number], ...content));
        status.textContent = `Saved ${names.join(", ")}`;
      } catch (error) {
        status.textContent = `This could not be saved: ${error.message}`;
      }
      setTimeout(() => (status.textContent = ""), 4000);
    });
  }
}

// ---- tokens over steps, with a slider ----------------------------------------------------------------------------

// What the template does for the tokens of the last step, for those of any other.
function dress(cell, [pieces, classes, hover, mark]) {
  cell.className = classes;
  if (hover) cell.dataset.tip = hover;
  else delete cell.dataset.tip;
  const aside = document.createElement("span");
  aside.className = "aside";
  aside.textContent = `${mark}: `;
  const shown = pieces.map(([text, isSign]) => {
    if (!isSign) return text;
    const sign = document.createElement("i");
    sign.textContent = text;
    return sign;
  });
  cell.replaceChildren(...(mark ? [aside] : []), ...shown);
}

function showStep(rows, { vocabulary, series }, step) {
  rows.forEach((row, index) => {
    const { rows: steps, notes } = series[index];
    const at = Math.min(step, steps.length - 1);
    const cells = [...row.querySelectorAll(".token")];
    // Rows of different lengths: as many cells as the longest has, the last of them empty.
    cells.forEach((cell, place) => {
      const token = steps[at][place];
      if (cell.dataset.shown === String(token)) return;
      cell.dataset.shown = String(token);
      dress(cell, token === undefined ? [[], "token", "", ""] : vocabulary[token]);
    });
    const spoken = cells.filter((cell) => cell.dataset.tip);
    const entered = spoken.find((cell) => cell.getAttribute("tabindex") === "0") ?? spoken[0];
    cells.forEach((cell) => cell.removeAttribute("tabindex"));
    spoken.forEach((cell) => cell.setAttribute("tabindex", cell === entered ? "0" : "-1"));
    row.querySelector(".note-cell").textContent = notes[at];
  });
}

for (const figure of document.querySelectorAll("[data-steps]")) {
  const data = JSON.parse(document.getElementById(figure.dataset.steps).textContent);
  const rows = [...figure.querySelectorAll(".steps-view tr")].slice(Number(figure.dataset.above));
  const slider = figure.querySelector("input[type=range]");
  const output = figure.querySelector("output");
  if (!slider) continue; // a single step has none
  // A trajectory may be shorter or longer at other steps than at the last: make room for all.
  rows.forEach((row, index) => {
    const width = data.series[index].rows.reduce((most, tokens) => Math.max(most, tokens.length), 0);
    const note = row.querySelector(".note-cell");
    while (row.querySelectorAll(".token").length < width) {
      const cell = document.createElement("td");
      cell.append(document.createElement("bdi"));
      cell.firstChild.className = "token";
      note.before(cell);
    }
  });
  figure.querySelector(".slider").hidden = false;
  slider.addEventListener("input", () => {
    hideTip();
    showStep(rows, data, slider.valueAsNumber);
    output.textContent = data.steps[slider.valueAsNumber];
    slider.setAttribute("aria-valuetext", output.textContent);
  });
}

// ---- tables to search and to sort --------------------------------------------------------------------------------

// "−1.2e−5" as a number; what is no number stands behind all that are.
const figureOf = (text) => Number(text.replaceAll("−", "-") || NaN);

function sortRows(body, column, numeric, downwards) {
  const key = (row) => row.cells[column].textContent;
  const inOrder = numeric
    ? (one, other) => {
        const [a, b] = [figureOf(key(one)), figureOf(key(other))];
        return Number.isNaN(a) - Number.isNaN(b) || (downwards ? b - a : a - b) || 0;
      }
    : (one, other) => key(one).localeCompare(key(other), undefined, { numeric: true }) * (downwards ? -1 : 1);
  body.append(...[...body.rows].sort(inOrder));
}

function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const downwards = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", downwards ? "descending" : "ascending");
      sortRows(table.tBodies[0], column, heading.classList.contains("number"), downwards);
    });
  });
}

function makeSearchable(find, table) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const status = find.querySelector("[role=status]");
  find.hidden = false;
  find.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      found += !row.hidden;
    });
    status.textContent = words.length ? `${found} of ${rows.length} rows` : "";
  });
}

for (const find of document.querySelectorAll("[data-finds]")) {
  const table = document.getElementById(find.dataset.finds);
  makeSortable(table);
  makeSearchable(find, table);
}

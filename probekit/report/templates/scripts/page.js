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

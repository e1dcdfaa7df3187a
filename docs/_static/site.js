"use strict";
// Tables with numbers get buttons in their headings; sort.js, which reports have too, does the rest.
for (const table of document.querySelectorAll("article table.docutils:has(thead)")) {
  const rows = [...table.tBodies[0].rows], headings = [...table.tHead.rows[0].cells];
  const number = (text) => (text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").match(/^[^\d\w+-]*([+-]?\d[\d.]*)/) || [])[1];
  const kinds = headings.map((_, i) => rows.every((row) => number(row.cells[i]?.textContent ?? "") || !/\w/.test(row.cells[i]?.textContent ?? "")));
  if (rows.length < 3 || !kinds.slice(1).some(Boolean) || rows.some((row) => row.cells.length !== headings.length)) continue;
  rows.forEach((row) => [...row.cells].forEach((cell, i) => {
    cell.dataset.value = kinds[i] ? number(cell.textContent) ?? "" : cell.textContent.trim();
    if (!kinds[i]) cell.dataset.text = "";
  }));
  for (const heading of headings) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent.trim() || "name";
    heading.replaceChildren(button);
    heading.setAttribute("aria-sort", "none");
  }
}

"use strict";
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, table = heading.closest("table"), body = table.tBodies[0];
    const column = [...heading.parentElement.children].indexOf(heading);
    const rows = [...body.rows], text = rows.some((row) => "text" in row.cells[column].dataset);
    // Numbers are most asked for from the largest down, names from A on.
    const before = heading.getAttribute("aria-sort");
    const order = before === "none" ? (text ? "ascending" : "descending") : before === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.value;
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (text ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y));
    });
    body.append(...rows);
    for (const other of heading.parentElement.children) other.setAttribute("aria-sort", other === heading ? order : "none");
  });
}

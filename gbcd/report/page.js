// Draws charts and tables from the data in this page. A control changes which table is shown, or a parameter of a chart.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const controls = [...document.querySelectorAll("[data-control]")];
const figures = [...document.querySelectorAll("figure[data-chart]")];
const grids = [...document.querySelectorAll("[data-grid]")];
const views = new Map();
const zooms = new Map();
const sorting = new Map();
const content = await unpacked();

async function unpacked() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function control(name) {
  return controls.find((field) => field.dataset.control === name);
}

function chosen(name) {
  return control(name)?.value ?? "";
}

function chartOf(figure) {
  return content.charts[figure.dataset.chart];
}

// The rows of a chart or grid for what is chosen; tables are stored by column.
function rowsOf({ tables, controls }) {
  const columns = tables[controls.map(chosen).join("|")];
  if (!columns) return [];
  const names = Object.keys(columns);
  const length = names.length ? columns[names[0]].length : 0;
  return Array.from({ length }, (_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
}

async function draw(figure) {
  const chart = chartOf(figure);
  views.get(figure)?.finalize();
  views.delete(figure);
  if (!rowsOf(chart).length) return fill(figure);
  const specification = structuredClone(chart.specification);
  for (const parameter of specification.params) if (control(parameter.name)) parameter.value = chosen(parameter.name);
  specification.datasets = { [content.dataset]: rowsOf(chart) };
  const result = await vegaEmbed(figure.querySelector(".plot"), specification, {
    config: { ...content.themes[dark.matches ? "dark" : "light"], font: getComputedStyle(document.body).fontFamily },
    renderer: "svg",
    actions: false,
    tooltip: { theme: dark.matches ? "dark" : "light" },
  });
  views.set(figure, result);
  figure.dataset.height = result.view.height();
  await fill(figure);
}

async function fill(figure) {
  const chart = chartOf(figure);
  const rows = rowsOf(chart);
  const plot = figure.querySelector(".plot");
  plot.hidden = rows.length === 0;
  figure.querySelector(".empty").hidden = rows.length > 0;
  list(figure.querySelector("details"), chart, Infinity);
  if (!rows.length) return;
  if (!views.has(figure)) return draw(figure);
  const { view } = views.get(figure);
  for (const name of chart.parameters) view.signal(name, chosen(name));
  const lines = chart.rowHeight && new Set(rows.map((row) => row[chart.rowHeight.column])).size;
  const zoom = zooms.get(figure) ?? 1;
  plot.style.minWidth = `${100 * zoom}%`;
  view.height((lines ? chart.rowHeight.pixels * lines : Number(figure.dataset.height)) * zoom);
  if (plot.clientWidth) view.width(plot.clientWidth);
  await view.data(content.dataset, rows).resize().runAsync();
}

// Rows as a table that its headings sort and the field at the top filters; made only while someone can see it.
function list(holder, source, shown) {
  const place = holder.querySelector(".grid");
  if (holder.tagName === "DETAILS" && !holder.open) return place.replaceChildren();
  const rows = sorted(holder, found(rowsOf(source)));
  const listed = rows.slice(0, holder.dataset.all ? Infinity : shown);
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  const body = table.createTBody();
  const lines = listed.map(() => body.insertRow());
  for (const [title, value, low, high] of source.columns) {
    const isNumber = rows.some((row) => typeof row[value] === "number");
    const isWhole = rowsOf(source).every((row) => [value, low, high].every((name) => Number.isInteger(row[name] ?? 0)));
    const write = isWhole ? (number) => number.toLocaleString("en") : digits;
    head.append(heading(holder, title, value, isNumber));
    listed.forEach((row, index) => lines[index].append(cell("td", bounded(write, row[value], row[low], row[high]), isNumber)));
  }
  place.replaceChildren(table);
  if (listed.length < rows.length) place.append(button(`Show all ${rows.length}`, () => (holder.dataset.all = "yes")));
}

function found(rows) {
  const wanted = chosen("find").trim().toLowerCase();
  return wanted ? rows.filter((row) => !("component" in row) || row.component?.toLowerCase().includes(wanted)) : rows;
}

function sorted(holder, rows) {
  const { column, sign } = sorting.get(holder) ?? {};
  if (!column) return rows;
  const before = (one, other) => (one < other ? -sign : one > other ? sign : 0);
  const isMissing = (row) => row[column] === null || row[column] === undefined;
  return rows.toSorted((one, other) => isMissing(one) - isMissing(other) || before(one[column], other[column]));
}

function heading(holder, title, column, isNumber) {
  const made = cell("th", "", isNumber);
  const now = sorting.get(holder);
  const isSorted = now?.column === column;
  made.scope = "col";
  if (isSorted) made.ariaSort = now.sign > 0 ? "ascending" : "descending";
  const sign = isSorted ? -now.sign : isNumber && column !== "rank" ? -1 : 1;
  made.append(button(title + (isSorted ? (now.sign > 0 ? " ▲" : " ▼") : ""), () => sorting.set(holder, { column, sign })));
  return made;
}

function button(text, change) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => {
    const holder = made.closest("details, [data-grid]");
    change();
    relist(holder);
    [...holder.querySelectorAll("button")].find((other) => other.textContent.startsWith(text.slice(0, 4)))?.focus();
  });
  return made;
}

function relist(holder) {
  if (holder.dataset.grid) list(holder, content.grids[holder.dataset.grid], content.grids[holder.dataset.grid].shown);
  else list(holder, chartOf(holder.closest("figure")), Infinity);
}

function cell(tag, text, isNumber) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (isNumber) made.className = "number";
  return made;
}

function bounded(write, value, low, high) {
  if (typeof value !== "number") return value ?? "-";
  return write(value) + (typeof low === "number" && typeof high === "number" ? ` [${write(low)}, ${write(high)}]` : "");
}

// Three significant digits, as gbcd.printing.number writes them in sentences and on the terminal.
function digits(value) {
  const text = value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(2) : value.toPrecision(3);
  return text.replace(/e([+-])(\d)$/, "e$010$2");
}

async function save(figure, kind) {
  const chart = chartOf(figure);
  const settings = [...new Set([...chart.controls, ...chart.parameters])].map(control);
  const names = settings.map((field) => field.selectedOptions?.[0].label ?? "").filter(Boolean);
  const link = document.createElement("a");
  link.download = `${[figure.dataset.chart, ...names].join("_").replaceAll(/[^\w.-]+/g, "_")}.${kind}`;
  link.href =
    kind === "csv"
      ? URL.createObjectURL(new Blob([asCsv(chart)], { type: "text/csv" }))
      : await views.get(figure).view.toImageURL(kind, 3);
  link.click();
}

function asCsv(chart) {
  const columns = chart.columns.flatMap(([title, value, low, high]) =>
    [[title, value], [`${title}, 95 % from`, low], [`${title}, 95 % to`, high]].filter(([, name]) => name));
  const quoted = (values) => values.map((value) => `"${String(value ?? "").replaceAll('"', '""')}"`).join(",") + "\n";
  return [quoted(columns.map(([title]) => title)), ...rowsOf(chart).map((row) => quoted(columns.map(([, name]) => row[name])))].join("");
}

// Choices that differ between groups, and blocks of text that belong to one.
function rename() {
  for (const [name, byGroup] of Object.entries(content.labels)) {
    const labels = byGroup[chosen("group")];
    const select = control(name);
    const kept = labels[select.value] ? select.value : Object.keys(labels)[0];
    select.replaceChildren(...Object.entries(labels).map(([value, label]) => new Option(label, value, false, value === kept)));
  }
  for (const block of document.querySelectorAll("[data-group]")) block.hidden = block.dataset.group !== chosen("group");
}

async function refresh(changed) {
  if (changed === "group") rename();
  const isConcerned = ({ controls, parameters = [] }) => changed === "group" || controls.includes(changed) || parameters.includes(changed);
  for (const grid of grids) relist(grid);
  await Promise.all(figures.filter((figure) => isConcerned(chartOf(figure))).map(fill));
}

for (const field of controls) {
  field.addEventListener(field.type === "search" ? "input" : "change", () => refresh(field.dataset.control));
}
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
for (const figure of figures) {
  const details = figure.querySelector("details");
  details.addEventListener("toggle", () => list(details, chartOf(figure), Infinity));
  for (const button of figure.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => save(figure, button.dataset.save));
  }
  for (const button of figure.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      zooms.set(figure, Math.min(8, Math.max(1, (zooms.get(figure) ?? 1) * 1.5 ** Number(button.dataset.zoom))));
      fill(figure);
    });
  }
}
if (control("group")) rename();
for (const grid of grids) relist(grid);
await Promise.all(figures.map(draw));
dark.addEventListener("change", () => figures.forEach(draw));
window.addEventListener("resize", () => figures.forEach(fill));
// A link to a section was followed before the pictures above it had their heights.
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
document.documentElement.dataset.drawn = figures.length;

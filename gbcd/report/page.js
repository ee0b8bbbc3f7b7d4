// Draws the charts from the data in this page. A control changes which table a chart is given, never the chart itself.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const controls = [...document.querySelectorAll("select[data-control]")];
const figures = [...document.querySelectorAll("figure[data-chart]")];
const views = new Map();

async function unpacked() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const content = await unpacked();

function control(name) {
  return controls.find((select) => select.dataset.control === name);
}

function chosen(name) {
  return control(name).value;
}

function chartOf(figure) {
  return content.charts[figure.dataset.chart];
}

function rowsOf(chart) {
  const columns = chart.tables[chart.controls.map(chosen).join("|")];
  if (!columns) return [];
  const names = Object.keys(columns);
  const length = names.length ? columns[names[0]].length : 0;
  return Array.from({ length }, (_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
}

async function draw(figure) {
  const chart = chartOf(figure);
  views.get(figure)?.finalize();
  const specification = { ...structuredClone(chart.specification), datasets: { [content.dataset]: rowsOf(chart) } };
  const result = await vegaEmbed(figure.querySelector(".plot"), specification, {
    config: { ...content.themes[dark.matches ? "dark" : "light"], font: getComputedStyle(document.body).fontFamily },
    renderer: "svg",
    actions: false,
    tooltip: { theme: dark.matches ? "dark" : "light" },
  });
  views.set(figure, result);
  await fill(figure);
}

async function fill(figure) {
  const chart = chartOf(figure);
  const rows = rowsOf(chart);
  const { view } = views.get(figure);
  figure.querySelector(".plot").hidden = rows.length === 0;
  figure.querySelector(".empty").hidden = rows.length > 0;
  list(figure);
  if (chart.rowHeight) view.height(chart.rowHeight.pixels * new Set(rows.map((row) => row[chart.rowHeight.column])).size);
  await view.data(content.dataset, rows).resize().runAsync();
}

// The rows of a chart as a table, made only while someone looks at it.
function list(figure) {
  const details = figure.querySelector(":scope > details");
  const place = details.querySelector(".scroll");
  if (!details.open) return place.replaceChildren();
  const chart = chartOf(figure);
  const table = document.createElement("table");
  const rows = rowsOf(chart);
  const head = table.createTHead().insertRow();
  const body = table.createTBody();
  const lines = rows.map(() => body.insertRow());
  for (const [name, title] of Object.entries(chart.columns)) {
    const isNumber = rows.some((row) => typeof row[name] === "number");
    head.append(cell("th", title, isNumber));
    rows.forEach((row, index) => lines[index].append(cell("td", written(row[name]), isNumber)));
  }
  place.replaceChildren(table);
}

function cell(tag, text, isNumber) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (isNumber) made.className = "number";
  return made;
}

function written(value) {
  if (value === null || value === undefined) return "-";
  if (typeof value !== "number") return value;
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(3);
  return value.toLocaleString("en", Number.isInteger(value) ? {} : { maximumSignificantDigits: 4 });
}

async function save(figure, kind) {
  const chart = chartOf(figure);
  const settings = chart.controls.map((name) => control(name).selectedOptions[0].label.replaceAll(/[^\w.-]+/g, "_"));
  const link = document.createElement("a");
  link.download = `${[figure.dataset.chart, ...settings].join("_")}.${kind}`;
  link.href =
    kind === "csv"
      ? URL.createObjectURL(new Blob([asCsv(chart)], { type: "text/csv" }))
      : await views.get(figure).view.toImageURL(kind, 3);
  link.click();
}

function asCsv(chart) {
  const names = Object.keys(chart.columns);
  const quoted = (values) => values.map((value) => `"${String(value ?? "").replaceAll('"', '""')}"`).join(",") + "\n";
  return [quoted(names), ...rowsOf(chart).map((row) => quoted(names.map((name) => row[name])))].join("");
}

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
  await Promise.all(figures.filter((figure) => chartOf(figure).controls.includes(changed)).map(fill));
}

for (const select of controls) select.addEventListener("change", () => refresh(select.dataset.control));
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
for (const figure of figures) {
  figure.querySelector(":scope > details").addEventListener("toggle", () => list(figure));
  for (const button of figure.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => save(figure, button.dataset.save));
  }
}
rename();
await Promise.all(figures.map(draw));
dark.addEventListener("change", () => figures.forEach(draw));
// A link to a section was followed before the pictures above it had their heights.
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
document.documentElement.dataset.drawn = figures.length;

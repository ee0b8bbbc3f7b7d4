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

function chosen(name) {
  return controls.find((select) => select.dataset.control === name).value;
}

function rowsOf(chart) {
  const columns = chart.tables[chart.controls.map(chosen).join("|")];
  if (!columns) return [];
  const names = Object.keys(columns);
  const length = names.length ? columns[names[0]].length : 0;
  return Array.from({ length }, (_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
  const font = getComputedStyle(document.body).fontFamily;
  return {
    font,
    background: "transparent",
    view: { stroke: null },
    axis: { labelColor: ink, titleColor: quiet, tickColor: line, domainColor: line, gridColor: line, gridOpacity: 0.6, labelFontSize: 11 },
    legend: { labelColor: ink, titleColor: quiet, labelFontSize: 11, symbolSize: 90 },
    text: { color: ink },
  };
}

async function draw(figure) {
  const chart = content.charts[figure.dataset.chart];
  views.get(figure)?.finalize();
  const specification = { ...structuredClone(chart.specification), datasets: { [content.dataset]: rowsOf(chart) } };
  const result = await vegaEmbed(figure.querySelector(".plot"), specification, {
    config: theme(),
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: dark.matches ? "dark" : "light" },
    downloadFileName: figure.dataset.chart,
  });
  views.set(figure, result);
  await fill(figure);
}

async function fill(figure) {
  const chart = content.charts[figure.dataset.chart];
  const rows = rowsOf(chart);
  figure.querySelector(".plot").hidden = rows.length === 0;
  figure.querySelector(".empty").hidden = rows.length > 0;
  list(figure, chart, rows);
  await views.get(figure).view.data(content.dataset, rows).resize().runAsync();
}

function list(figure, chart, rows) {
  const details = figure.querySelector(":scope > details");
  const place = details.querySelector(".scroll");
  if (!details.open) return place.replaceChildren();
  const table = document.createElement("table");
  const names = Object.keys(chart.columns);
  const head = table.createTHead().insertRow();
  for (const name of names) head.append(cell("th", chart.columns[name]));
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const name of names) line.append(cell("td", row[name]));
  }
  place.replaceChildren(table);
}

function cell(tag, value) {
  const made = document.createElement(tag);
  made.textContent = value ?? "-";
  return made;
}

function rename() {
  for (const [name, byGroup] of Object.entries(content.labels)) {
    const labels = byGroup[chosen("group")];
    const select = controls.find((control) => control.dataset.control === name);
    const kept = labels[select.value] ? select.value : Object.keys(labels)[0];
    select.replaceChildren(...Object.entries(labels).map(([value, label]) => new Option(label, value, false, value === kept)));
  }
  for (const block of document.querySelectorAll("[data-group]")) block.hidden = block.dataset.group !== chosen("group");
}

async function refresh(changed) {
  if (changed === "group") rename();
  const following = figures.filter((figure) => content.charts[figure.dataset.chart].controls.includes(changed));
  await Promise.all(following.map(fill));
}

for (const select of controls) select.addEventListener("change", () => refresh(select.dataset.control));
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
for (const figure of figures) {
  figure.querySelector(":scope > details").addEventListener("toggle", () => {
    const chart = content.charts[figure.dataset.chart];
    list(figure, chart, rowsOf(chart));
  });
}
rename();
await Promise.all(figures.map(draw));
dark.addEventListener("change", () => figures.forEach(draw));
document.documentElement.dataset.drawn = figures.length;

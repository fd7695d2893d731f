"""The fixed parts of the report page: its style, and the script that draws the charts from the page's own data."""

# Nothing may be loaded: the page shows the same in ten years, and on a machine without a network.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { --ink: #16202e; --soft: #5b6778; --line: #e3e7ed; --back: #f6f7f9; --card: #ffffff; --accent: #2563eb;
  --good: #0a7f55; --warn: #a15c00; --bad: #c2273d; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #97a3b4; --line: #2a323e; --back: #10151c;
  --card: #171d26; --accent: #7aa7ff; --good: #4ccf9b; --warn: #f0b357; --bad: #ff7a8a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 12px; }
.soft { color: var(--soft); }
.status { font-size: 13px; font-weight: 600; white-space: nowrap; }
.status::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 50%;
  background: currentColor; margin-right: 6px; }
.finished, .good { color: var(--good); } .preempted, .unfinished { color: var(--warn); }
.diverged, .bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 1px; margin: 20px 0 0;
  overflow: hidden; }
.tiles div { padding: 12px 16px; box-shadow: 0 0 0 1px var(--line); }
.tiles dt { color: var(--soft); font-size: 12px; }
.tiles dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tiles small { display: block; font-size: 12px; font-weight: 400; color: var(--soft); }
.table { overflow: auto; max-height: 430px; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; font-size: 12px; position: sticky; top: 0; background: var(--card); }
th.number, td.number { text-align: right; }
th:first-child, td:first-child { white-space: nowrap; }
td small { display: block; color: var(--soft); }
td.wide { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.bar { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 8px 22px; align-items: center;
  margin: 24px -24px 0; padding: 10px 24px; background: var(--back); border-bottom: 1px solid var(--line);
  font-size: 13px; }
.bar label { display: flex; gap: 6px; align-items: center; cursor: pointer; }
.bar input { accent-color: var(--accent); margin: 0; }
.bar .hint { margin-left: auto; color: var(--soft); font-size: 12px; }
.choice { display: inline-flex; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.bar button { font: inherit; border: 0; padding: 3px 12px; background: var(--card); color: var(--ink);
  cursor: pointer; }
.bar button + button { border-left: 1px solid var(--line); }
.choice button[aria-pressed=true] { background: var(--accent); color: var(--card); }
.bar .run { border: 1px solid var(--line); border-radius: 6px; }
.bar .run[aria-pressed=false] { opacity: 0.5; text-decoration: line-through; }
.bar .runs { display: flex; flex-wrap: wrap; gap: 6px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 8px 4px; }
figure.wide { grid-column: 1 / -1; }
figcaption { padding: 0 10px; font-weight: 600; }
figcaption span { font-weight: 400; font-size: 12px; color: var(--soft); margin-left: 6px; }
.plot { height: 250px; } .wide .plot { height: 370px; } .small .plot { height: 175px; }
.charts + .charts { margin-top: 16px; }
.charts.small { grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 12px; }
.small figcaption { overflow-wrap: anywhere; line-height: 1.3; }
.small figcaption span { display: block; margin: 0; }
select { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 2px 6px; }
details { padding: 10px 16px; margin: 12px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow: auto; font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.mixture { padding: 14px 16px 10px; }
.mixture figcaption { padding: 0 0 8px; }
.mixture svg { display: block; width: 100%; }
.mixture text { font-size: 11px; fill: var(--soft); }
.mixture path { stroke: var(--ink); stroke-width: 1; } .mixture .now path { stroke-dasharray: 3 3; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 22px; padding-top: 8px; font-size: 12px; color: var(--soft); }
@media (max-width: 760px) { .charts { grid-template-columns: minmax(0, 1fr); } main { padding: 20px 14px; }
  .charts.small { grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); }
  .bar { margin: 20px -14px 0; padding: 10px 14px; } .bar .hint { display: none; } }
@media print { .bar { display: none; } figure, .tiles { break-inside: avoid; } }
"""

PALETTE = ("#3b7cf2", "#e8710a", "#12a27a", "#c2338f", "#8a63d2", "#0c9bb8", "#b58105", "#7b8794")

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "step", smoothing: 0.25, logX: false, logY: false, events: true, hidden: new Set(), range: null,
  metric: "" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const AXES = {
  step: { title: axisTitle("step"), hoverformat: ",.0f" },
  tokens: { title: axisTitle("tokens") },
  hours: { title: axisTitle("hours in training steps"), hoverformat: ".4~g" },
};
const KINDS = { skipped: "--bad", rewind: "--bad", diverged: "--bad", initialised: "--accent", forked: "--accent" };
function axisTitle(text) { return { text, standoff: 6, font: { size: 11 } }; }
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// A step on the chosen axis, by linear interpolation between the knots of its run.
function place(run, step) {
  if (state.axis === "step" || step === null) return step;
  const steps = data.runs[run].knots.step, values = data.runs[run].knots[state.axis];
  let low = 0, high = steps.length - 1;
  if (high < 0) return null;
  if (step <= steps[0]) return values[0];
  if (step >= steps[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return values[low] + (values[high] - values[low]) * (step - steps[low]) / (steps[high] - steps[low]);
}

// Mean under a kernel that falls by e every `width` steps to both sides, so curves are not shifted; gaps stay gaps.
function smooth(steps, y, width) {
  const sum = new Float64Array(y.length), weight = new Float64Array(y.length);
  const sweep = (order, own) => {
    let s = 0, w = 0, last = null;
    for (const i of order) {
      const decay = last === null ? 0 : Math.exp(-Math.abs(steps[i] - last) / width);
      s *= decay; w *= decay; last = steps[i];
      if (y[i] !== null && own) { s += y[i]; w += 1; }
      sum[i] += s; weight[i] += w;
      if (y[i] !== null && !own) { s += y[i]; w += 1; }
    }
  };
  sweep(y.keys(), true);
  sweep([...y.keys()].reverse(), false);
  return y.map((value, i) => value === null ? null : sum[i] / weight[i]);
}

function lineTrace(chart, trace, steps, y, look) {
  const { dash } = trace, few = y.filter((value) => value !== null).length <= 40;
  return {
    type: "scatter", mode: few ? "lines+markers" : "lines", marker: { size: 5 }, connectgaps: false,
    name: escape(trace.name), x: steps.map((step) => place(trace.run, step)), y, customdata: steps,
    line: { color: data.palette[trace.colour % data.palette.length], dash, width: 1.8,
      shape: chart.shape || "linear" },
    hovertemplate: `%{y:${chart.format}} at step %{customdata:,.0f}<extra>${escape(trace.name)}</extra>`,
    ...(trace.error ? { error_y: { array: trace.error, thickness: 1, width: 0 } } : {}),
    showlegend: Boolean(chart.legend) && trace.source === undefined, ...look,
  };
}

// Where colours stand for runs, the legend names the dashes of the sources.
function dashes(chart) {
  const found = new Map(chart.traces.filter((trace) => trace.source).map((trace) => [trace.source, trace.dash]));
  return [...found].map(([source, dash]) => ({ type: "scatter", mode: "lines", x: [null], y: [null],
    name: escape(source), line: { color: css("--soft"), dash, width: 1.8 } }));
}

// What a chart of several metrics shows of its traces and levels: those of the chosen metric.
const chosen = (chart) => (one) => !one.metric || one.metric === (state.metric || chart.main);

function curves(chart) {
  const shown = chart.traces.filter((trace) => !state.hidden.has(trace.run)).filter(chosen(chart));
  return shown.flatMap((trace) => {
    if (chart.share)
      return [lineTrace(chart, trace, trace.step, trace.y, { stackgroup: "share", mode: "lines", line: { width: 0 },
        fillcolor: data.palette[trace.colour % data.palette.length] + "b0" })];
    if (!chart.smooth || !state.smoothing || trace.step.length < 8)
      return [lineTrace(chart, trace, trace.step, trace.y, {})];
    const from = trace.mean || trace, width = (trace.step.at(-1) - trace.step[0]) * state.smoothing / 100;
    const raw = lineTrace(chart, trace, trace.step, trace.y, { opacity: 0.5, mode: "lines", hoverinfo: "skip",
      hovertemplate: undefined, showlegend: false });
    raw.line = { ...raw.line, width: 1, dash: "solid" };
    return [raw, lineTrace(chart, trace, from.step, smooth(from.step, from.y, width), {})];
  });
}

// Lines across the chart: the base line that curves begin at, and what guessing gives.
function levels(chart) {
  const found = (chart.levels || []).filter(chosen(chart));
  const line = (level) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: level.y, y1: level.y, layer: "between",
    line: { color: css(level.base ? "--ink" : "--soft"), width: 1.4, dash: level.base ? "solid" : "dot" } });
  const text = (level) => ({ xref: "paper", x: 1, xanchor: "left", y: level.y, yanchor: "middle", text: level.text,
    showarrow: false, font: { size: 10, color: css("--soft") } });
  return { shapes: found.map(line), annotations: found.map(text) };
}

// Events are a dotted line over the height of the chart, with a mark at its top to point at.
function marks(chart) {
  if (!state.events || chart.share || chart.small) return [];
  return ["--bad", "--warn", "--accent"].flatMap((look) => {
    const events = data.events.filter((e) => (KINDS[e.kind] || "--warn") === look && !state.hidden.has(e.run));
    const x = events.map((e) => place(e.run, e.step)), color = css(look);
    const common = { type: "scatter", yaxis: "y2", showlegend: false };
    return [
      { ...common, mode: "lines", hoverinfo: "skip", line: { color, width: 1, dash: "dot" }, opacity: 0.6,
        x: x.flatMap((at) => [at, at, null]), y: x.flatMap(() => [0, 1, null]) },
      { ...common, mode: "markers", marker: { symbol: "triangle-down", size: 9, color }, x, y: x.map(() => 1),
        cliponaxis: false, hovertemplate: "%{customdata}<extra></extra>",
        customdata: events.map((e) => `<b>${escape(e.kind)}</b> at step ${e.step.toLocaleString("en")}` +
          (data.runs.length > 1 ? ` · ${escape(data.runs[e.run].label)}` : "") +
          (e.text ? "<br>" + escape(e.text).replace(/(.{60,90}?) /g, "$1<br>") : "")) },
    ];
  });
}

// The y axis fits what lies inside the chosen span of x.
function yRange(chart, traces, log) {
  if (chart.share) return [0, 1];
  let low = Infinity, high = -Infinity;
  const [from, to] = state.range || [-Infinity, Infinity];
  for (const trace of traces)
    trace.y.forEach((value, i) => {
      if (value === null || (log && value <= 0)) return;
      if ((trace.x[i + 1] ?? trace.x[i]) < from || (trace.x[i - 1] ?? trace.x[i]) > to) return;
      low = Math.min(low, value); high = Math.max(high, value);
    });
  if (low > high) return log ? [-1, 1] : [0, 1];
  (chart.levels || []).filter(chosen(chart)).forEach(({ y }) => { low = Math.min(low, y); high = Math.max(high, y); });
  if (log) { low = Math.log10(low); high = Math.log10(high); }
  else if (chart.zero) low = Math.min(low, 0);
  // Where all values are the same but for rounding, their size says how much room there is.
  const size = Math.max(Math.abs(low), Math.abs(high));
  const pad = (high - low > 1e-9 * size ? high - low : size || 1) * 0.06;
  return [chart.zero && low === 0 ? 0 : low - pad, high + pad];
}

// The span of x that all charts show: the chosen one, or that of the runs that are not hidden.
function xRange() {
  let [low, high] = state.range || [Infinity, -Infinity];
  if (!state.range)
    data.runs.forEach((run, i) => {
      const at = run.knots.step.map((step) => place(i, step)).filter((x) => !state.logX || x > 0);
      if (!at.length || state.hidden.has(i)) return;
      low = Math.min(low, at[0]); high = Math.max(high, at.at(-1));
    });
  if (low > high) [low, high] = [1, 2];
  if (state.logX) return [low, high * (state.range ? 1 : 1.05)].map((x) => Math.log10(Math.max(x, 1e-9)));
  const pad = state.range ? 0 : (high - low || 2) * 0.01;
  return [low - pad, high + pad];
}

function logTicks([low, high]) {
  return high - low > 3 ? { dtick: Math.ceil((high - low) / 6) } : high - low > 0.9 ? { dtick: "D2" } : {};
}

function draw(plot) {
  const chart = plot.chart, traces = curves(chart), log = chart.log === null ? state.logY : chart.log;
  const grid = { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), tickcolor: css("--line") };
  const x = xRange(), y = yRange(chart, traces, log);
  const layout = {
    ...levels(chart), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { ...(chart.small ? { l: 48, t: 8, b: 26 } : { l: 58, t: 12, b: 40 }),
      r: chart.levels?.length ? 44 : chart.small ? 10 : 14 },
    font: { family: "inherit", size: 12, color: css("--soft") }, dragmode: "zoom", hovermode: "x", hoverdistance: 8,
    hoverlabel: { font: { size: 12 }, namelength: 40, align: "left" },
    legend: { orientation: "h", y: -0.22, x: 0, yanchor: "top", traceorder: "normal", itemclick: false,
      itemdoubleclick: false },
    xaxis: { ...grid, exponentformat: "B", type: state.logX ? "log" : "linear", range: x,
      ...(state.logX ? logTicks(x) : {}), ...AXES[state.axis], ...(chart.small ? { title: {}, nticks: 4 } : {}) },
    yaxis: { ...grid, type: log ? "log" : "linear", range: y, ...(log ? logTicks(y) : {}), fixedrange: true,
      nticks: chart.small ? 5 : 7, tickformat: chart.tick || ".4~g" },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  };
  plot.closest("figure").hidden = !traces.length;
  if (!traces.length) return;
  if (chart.legend) plot.style.height = `${(chart.wide ? 370 : 250) + 22}px`;
  const config = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };
  Plotly.react(plot, [...traces, ...dashes(chart), ...marks(chart)], layout, config);
}

const plots = [...document.querySelectorAll(".plot")];
const redraw = () => plots.forEach(draw);

// A span chosen in one chart is shown in all of them.
function zoomed(change) {
  if (!("xaxis.range[0]" in change)) return;
  const range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  state.range = state.logX ? range.map((x) => 10 ** x) : range;
  redraw();
}

function press(button, group) {
  group.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
}

function start() {
  plots.forEach((plot) => {
    plot.chart = data.charts[Number(plot.dataset.chart)];
    draw(plot);
    plot.on("plotly_relayout", zoomed);
    plot.on("plotly_doubleclick", () => { state.range = null; redraw(); });
  });
  const axes = [...document.querySelectorAll("[data-axis]")];
  axes.forEach((button) => button.addEventListener("click", () => {
    press(button, axes); state.axis = button.dataset.axis; state.range = null; redraw();
  }));
  document.querySelectorAll("[data-run]").forEach((button) => button.addEventListener("click", () => {
    const run = Number(button.dataset.run), hide = !state.hidden.has(run);
    if (hide) state.hidden.add(run); else state.hidden.delete(run);
    button.setAttribute("aria-pressed", String(!hide)); redraw();
  }));
  document.querySelectorAll("[data-switch]").forEach((box) => box.addEventListener("change", () => {
    state[box.dataset.switch] = box.checked; redraw();
  }));
  document.getElementById("metric")?.addEventListener("change", (change) => {
    state.metric = change.target.value;
    document.querySelectorAll("tr[data-metric]").forEach((row) => {
      row.hidden = state.metric ? row.dataset.metric !== state.metric : !("main" in row.dataset);
    });
    document.querySelectorAll("details.topics").forEach((part) => {
      part.hidden = !part.querySelector("tbody tr:not([hidden])");
    });
    redraw();
    dispatchEvent(new Event("resize")); // those that stay have another width
  });
  document.getElementById("smoothing").addEventListener("input", (change) => {
    state.smoothing = Number(change.target.value);
    document.getElementById("smoothing-value").textContent = state.smoothing ? `${state.smoothing}%` : "off";
    redraw();
  });
  dark.addEventListener("change", redraw);
}
start();
"""

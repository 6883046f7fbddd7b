// A measured value with its interval and the limit it must keep to, as a small drawing.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, MARGIN] = [160, 20, 8];

export function number(value) {
  if (!Number.isFinite(value)) return "–";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 3;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** `check`: { value, low, high, at_least, at_most, holds }; all but the last may be null. */
export function intervalChart({ value, low, high, at_least, at_most, holds }) {
  const limits = [at_least, at_most].filter(Number.isFinite);
  const marks = [value, low, high, ...limits].filter(Number.isFinite);
  const [least, span] = [Math.min(...marks), Math.max(...marks) - Math.min(...marks) || 1];
  const x = (at) => MARGIN + ((at - least) / span) * (WIDTH - 2 * MARGIN);
  const chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img" });
  const words = [`value ${number(value)}`];
  chart.classList.add("interval", holds ? "holds" : "fails");
  chart.append(shape("line", { class: "axis", x1: 0, x2: WIDTH, y1: 10, y2: 10 }));
  if (Number.isFinite(low) && Number.isFinite(high)) {
    chart.append(shape("line", { class: "range", x1: x(low), x2: x(high), y1: 10, y2: 10 }));
    words.push(`interval ${number(low)} to ${number(high)}`);
  }
  for (const limit of limits) {
    chart.append(shape("line", { class: "limit", x1: x(limit), x2: x(limit), y1: 1, y2: 19 }));
    words.push(`limit ${number(limit)}`);
  }
  if (Number.isFinite(value)) chart.append(shape("circle", { class: "value", cx: x(value), cy: 10, r: 4 }));
  chart.setAttribute("aria-label", words.join(", "));
  return chart;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

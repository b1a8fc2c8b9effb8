"use strict";
// What a click shows: the edges of a unit, and its neighbours with their numbers.  Texts come from
// strangers: they are set as text alone.
(() => {
  const { figure, nodes, edges, words, pictured, listed } = JSON.parse(document.getElementById("data").textContent);
  const plot = document.getElementById("plot");
  const panel = document.getElementById("facts");
  const tools = document.getElementById("tools");
  const points = { units: [], ends: [] };  // numbers of nodes, in the order of the traces' points
  nodes.forEach((node, i) => points[node.end ? "ends" : "units"].push(i));
  const sides = nodes.map(() => ({ sources: [], destinations: [] }));
  edges.forEach((edge, i) => {
    sides[edge.dst].sources.push(i);
    sides[edge.src].destinations.push(i);
  });

  function element(name, text, options = {}) {
    const made = Object.assign(document.createElement(name), options);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function button(text, action) {
    const made = element("button", undefined, { type: "button" });
    made.append(element("bdi", text));
    made.addEventListener("click", action);
    return made;
  }

  function list(lines) {
    const made = element("dl");
    for (const [name, value] of lines) {
      const shown = element("dd");
      shown.append(element("bdi", value));
      const line = element("div");
      line.append(element("dt", name), shown);
      made.append(line);
    }
    return made;
  }

  function numberCell(text, value) {
    const sign = value < 0 ? "negative" : "positive";
    return element("td", text, { className: `number ${sign}`, title: String(value) });
  }

  function table(heads, rows) {
    const made = element("table");
    const head = element("tr");
    heads.forEach((text, i) => head.append(element("th", text, { className: i ? "number" : "" })));
    const top = element("thead");
    top.append(head);
    const body = element("tbody");
    body.append(...rows);
    made.append(top, body);
    return made;
  }

  function row(node, ...cells) {
    const made = element("tr");
    const name = element("td");
    name.append(button(nodes[node].short, () => showNode(node)));
    made.append(name, ...cells);
    made.dataset.node = node;
    return made;
  }

  function details(lines) {
    const made = element("tr", undefined, { className: "details" });
    const text = lines.map(([name, value]) => `${name}: ${value}`).join("; ");
    made.append(element("td", text, { colSpan: 3 }));
    return made;
  }

  const strongest = (a, b) => Math.abs(b.relevance) - Math.abs(a.relevance);

  function neighbours(node, side) {
    const far = side === "sources" ? "src" : "dst";
    const share = side === "sources" ? "of_dst" : "of_src";
    const beside = sides[node][side].map((i) => edges[i]).sort(strongest);
    const rows = beside.flatMap((edge) => [
      row(edge[far], numberCell(edge.text, edge.relevance),
        element("td", edge[share], { className: "number" })),
      ...(edge.lines.length ? [details(edge.lines)] : []),
    ]);
    const made = element("section", undefined, { id: side });
    const count = beside.length.toLocaleString("en");
    const where = side === "sources" ? "from the input's side" : "towards the output";
    made.append(element("h3", `${count} ${words.edge}${beside.length === 1 ? "" : "s"} ${where}`));
    if (rows.length) made.append(table(["unit", words.short, "share of this unit"], rows));
    return made;
  }

  // Lines of some edges above all others, which grow pale.
  function highlight(chosen, lit) {
    const parts = { "#D55E00": [], "#0072B2": [], "#9A9A9A": [] };
    for (const i of chosen) parts[edges[i].colour].push(edges[i]);
    const lines = Object.entries(parts).filter(([, some]) => some.length).map(([color, some]) => ({
      type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false,
      line: { color, width: 2.4, shape: "spline", smoothing: 0.9 },
      x: some.flatMap((edge) => [...edge.x, null]),
      y: some.flatMap((edge) => [...edge.y, null]),
    }));
    const traces = [];
    for (const trace of figure.data) {
      const pale = { ...trace };
      if (trace.mode === "lines") pale.opacity = 0.25 * trace.opacity;
      const numbers = points[trace.name];
      if (numbers) {
        pale.selectedpoints = numbers.flatMap((node, i) => (lit.has(node) ? [i] : []));
        pale.unselected = { marker: { opacity: 0.2 } };
        if (trace.text) pale.text = trace.text.map((text, i) => (lit.has(numbers[i]) ? text : ""));
      }
      if (trace.name === "edges") traces.push(...lines);  // below the marks
      traces.push(pale);
    }
    const images = (figure.layout.images || []).map((image, i) => (
      { ...image, opacity: lit.has(pictured[i]) ? 1 : 0.2 }
    ));
    Plotly.react(plot, traces, { ...figure.layout, images }, config);
  }

  function reset() {
    return button("all units", showAll);
  }

  function showNode(node) {
    const { sources, destinations } = sides[node];
    const chosen = [...sources, ...destinations];
    const lit = new Set([node, ...sources.map((i) => edges[i].src),
      ...destinations.map((i) => edges[i].dst)]);
    highlight(chosen, lit);
    tools.replaceChildren(reset());
    const title = element("h2");
    title.append(element("bdi", nodes[node].title));
    panel.replaceChildren(title, list(nodes[node].lines), neighbours(node, "sources"),
      neighbours(node, "destinations"));
    panel.dataset.node = node;
    panel.parentElement.scrollTop = 0;
  }

  function showEdge(i) {
    const edge = edges[i];
    highlight([i], new Set([edge.src, edge.dst]));
    tools.replaceChildren(reset());
    const ends = [edge.src, edge.dst].map((node) => row(
      node, numberCell(nodes[node].text, nodes[node].relevance),
    ));
    panel.replaceChildren(element("h2", `One ${words.edge}`),
      list([[words.relevance, edge.text], ["share of the source", edge.of_src],
        ["share of the destination", edge.of_dst], ...edge.lines].filter(([, text]) => text)),
      table(["from, to", words.short], ends));
    delete panel.dataset.node;
  }

  function showAll() {
    Plotly.react(plot, figure.data, figure.layout, config);
    tools.replaceChildren();
    const rows = listed.map((node) => row(
      node, numberCell(nodes[node].text, nodes[node].relevance),
    ));
    panel.replaceChildren(element("h2", "Units"),
      element("p", "Choose one, here or in the graph, for its neighbours."),
      table(["unit", words.short], rows));
    delete panel.dataset.node;
  }

  const config = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
    toImageButtonOptions: { format: "svg", filename: "graph" },
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") showAll();
  });
  showAll();
  plot.on("plotly_click", ({ points: [{ data: trace, pointNumber }] }) => {
    if (trace.name === "edges") showEdge(pointNumber);
    else if (points[trace.name]) showNode(points[trace.name][pointNumber]);
  });
})();

"use strict";
// Which keys a click held: Dash hands on what was clicked, but not how.
(function () {
  let held = { shift: false, alt: false };
  document.addEventListener(
    "pointerdown",
    (event) => {
      held = { shift: event.shiftKey, alt: event.altKey || event.ctrlKey || event.metaKey };
    },
    true
  );

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    nrm: {
      clicked: function () {
        const triggered = window.dash_clientside.callback_context.triggered[0];
        const point = triggered && triggered.value && triggered.value.points[0];
        const data = point && point.customdata;
        if (!data || !data.length || data.includes("")) {
          return window.dash_clientside.no_update; // a pseudo-unit, or an edge from one
        }
        const edge = data.length === 2; // its source and its destination
        return {
          figure: JSON.parse(triggered.prop_id.replace(/\.clickData$/, "")).figure,
          subject: data.join(" -> "),
          edge: edge,
          shift: held.shift,
          alt: held.alt,
          time: Date.now(), // the same unit twice is two clicks
        };
      },
    },
  });

  // What takes over half a second says how far it has come.
  const SOON = 500;
  const EVERY = 300;
  let since = null;
  let asking = false;

  function busy() {
    return document.querySelector('#view[data-dash-is-loading="true"]') !== null;
  }

  async function look() {
    const box = document.getElementById("busy");
    if (!box) {
      return;
    }
    if (!busy()) {
      since = null;
      box.hidden = true;
      return;
    }
    since = since === null ? Date.now() : since;
    if (Date.now() - since < SOON || asking) {
      return;
    }
    asking = true;
    try {
      const answer = await fetch("progress?tab=" + encodeURIComponent(box.dataset.tab));
      tell(box, await answer.json());
    } catch (error) {
      tell(box, { what: "the server does not answer" });
    } finally {
      asking = false;
    }
  }

  function tell(box, progress) {
    const bar = document.getElementById("bar");
    const told = document.getElementById("told");
    if (progress.total) {
      bar.max = progress.total;
      bar.value = progress.done;
    } else {
      bar.removeAttribute("value");
    }
    const counted = progress.total
      ? ": " + progress.done + " of " + progress.total + " " + progress.unit
      : "";
    const seconds = progress.seconds ? ", " + progress.seconds + " s" : "";
    told.textContent = (progress.what || "computing") + counted + seconds;
    box.hidden = !busy();
  }

  setInterval(look, EVERY);

  // Control and Enter in a text runs it, as its button does.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      if (event.target instanceof HTMLTextAreaElement) {
        event.target.blur();
        const button = document.querySelector("button.submit");
        if (button) {
          button.click();
        }
      }
    }
  });
})();

// Times in the reader's own zone; UTC stays in the title. Pages work without this.
for (const time of document.querySelectorAll("time[datetime]")) {
  const at = new Date(time.dateTime);
  if (!Number.isNaN(at.valueOf())) {
    time.textContent = at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
    time.title = time.dateTime + " (UTC)";
  }
}

// The live page: each event is one exchange or one finding, as text alone.
const live = document.querySelector("table[data-live]");
if (live) {
  const body = live.tBodies[0];
  const state = document.getElementById("live-state");
  const pause = document.getElementById("live-pause");
  let paused = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  const events = new EventSource(live.dataset.live);
  events.onopen = () => { state.textContent = "Following the store."; };
  events.onerror = () => { state.textContent = "The console does not answer; what is shown may be old. Trying again."; };
  const early = document.getElementById("live-findings");
  const add = (rows, id, cells, numbers, most) => {
    const line = rows.insertRow(0);
    for (const [index, value] of cells.entries()) {
      const cell = line.insertCell();
      if (index === 0) {
        const link = document.createElement("a");
        link.href = "/exchanges/" + encodeURIComponent(id);
        link.textContent = new Date(value).toLocaleTimeString();
        link.title = value + " (UTC)";
        cell.append(link);
      } else {
        const text = document.createElement("bdi");
        text.textContent = value;
        cell.append(text);
      }
      if (numbers.includes(index)) cell.className = "number";
    }
    while (rows.rows.length > most) rows.deleteRow(-1);
  };
  events.onmessage = (event) => {
    if (paused) return;
    const row = JSON.parse(event.data);
    if (row.finding) {
      early.hidden = false;
      add(early.querySelector("tbody"), row.id, row.finding, [], 20);
    } else {
      add(body, row.id, row.cells, [3, 4, 5, 6], 200);
    }
  };
}

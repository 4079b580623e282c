// Times in the reader's own zone; UTC stays in the title. Pages work without this.
for (const time of document.querySelectorAll("time[datetime]")) {
  const at = new Date(time.dateTime);
  if (!Number.isNaN(at.valueOf())) {
    time.textContent = at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
    time.title = time.dateTime + " (UTC)";
  }
}

// Opens the report once the page is read. A browser that cannot is told why.

(async () => {
  try {
    if (!("DecompressionStream" in window)) throw new Error("this browser is too old: it lacks DecompressionStream");
    window.page = new Page(await Report.open());
    performance.mark("ready");
  } catch (error) {
    $("message").textContent = `The answers cannot be shown: ${error.message}`;
    $("message").hidden = false;
  }
})();

"use strict";
(function () {
  var box = document.getElementById("browser"), controls = document.getElementById("controls");
  if (box && controls) {
    controls.hidden = false;
    var all = Array.prototype.slice.call(box.children), count = document.getElementById("shown");
    var field = function (name) { return document.getElementById("by-" + name); };
    var order = all.slice();
    var update = function () {
      var label = field("label").value, iteration = field("iteration").value;
      var survivor = field("survivor").checked, words = field("words") ? field("words").value.toLowerCase() : "", n = 0;
      order = all.slice();
      if (field("sort").value === "votes") {
        order.sort(function (a, b) { return Number(b.dataset.votes || -1e18) - Number(a.dataset.votes || -1e18); });
      }
      order.forEach(function (each) {
        var fits = (!label || each.dataset.label === label) && (!iteration || each.dataset.iteration === iteration) &&
          (!survivor || each.dataset.survivor === "1") && (!words || each.textContent.toLowerCase().indexOf(words) >= 0);
        each.hidden = !fits;
        n += fits ? 1 : 0;
        box.appendChild(each);
      });
      count.textContent = n + " shown";
    };
    ["label", "iteration", "survivor", "words", "sort"].forEach(function (name) {
      if (field(name)) field(name).addEventListener("input", function () { box.parentNode.open = true; update(); });
    });
    update();
  }
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (each) { each.open = true; });
  });
})();

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
  var table = document.querySelector("#rows tbody"), tableControls = document.getElementById("rows-controls");
  if (table && tableControls) {
    tableControls.hidden = false;
    var lines = Array.prototype.slice.call(table.children);
    var wordsOf = document.getElementById("rows-words"), sortOf = document.getElementById("rows-sort");
    var cell = function (line) { return line.children[Number(sortOf.value)].textContent; };
    var show = function () {
      var words = wordsOf.value.toLowerCase(), n = 0, sorted = lines.slice();
      if (sortOf.value !== "") {
        sorted.sort(function (a, b) {
          var one = cell(a), other = cell(b), apart = Number(one) - Number(other);
          if (one === "" || other === "") return (one === "") - (other === "");
          return isNaN(apart) ? (one < other ? -1 : one > other ? 1 : 0) : apart;
        });
      }
      sorted.forEach(function (line) {
        line.hidden = words !== "" && line.textContent.toLowerCase().indexOf(words) < 0;
        n += line.hidden ? 0 : 1;
        table.appendChild(line);
      });
      document.getElementById("rows-shown").textContent = n + " shown";
    };
    [wordsOf, sortOf].forEach(function (each) { each.addEventListener("input", show); });
    show();
  }
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (each) { each.open = true; });
  });
})();

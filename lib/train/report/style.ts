/** The style sheet of a report. Colours of runs keep a contrast of at least 3:1 to their background in both schemes. */
export const style = `
:root {
  --page: #f7f6f3; --card: #ffffff; --text: #1d1c1a; --soft: #65615a; --line: #e3e0d9; --grid: #ece9e2; --mark: #fff4d6;
  --c0: #2962c8; --c1: #c4570a; --c2: #0c8467; --c3: #8a45c2; --c4: #c22a68; --c5: #8a6b00; --c6: #4a7a8c; --c7: #6b6b6b;
  --good: #1c7c45; --busy: #2962c8; --wait: #94610a; --bad: #bb2525;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141416; --card: #1c1c1f; --text: #ecebe8; --soft: #a3a099; --line: #34343a; --grid: #29292e; --mark: #3a3320;
    --c0: #77a9ff; --c1: #f59e56; --c2: #45c9a5; --c3: #c494fb; --c4: #f783ae; --c5: #d8ba45; --c6: #86bccf; --c7: #b0b0b0;
    --good: #5fcb8b; --busy: #77a9ff; --wait: #e2b04d; --bad: #ff8078;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 78rem; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 4rem; background: var(--page); color: var(--text);
  font: 0.9375rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
html:not(.scripted) .scripted, .off { display: none !important; }
h1, h2, h3, p, dl, dd, figure, fieldset { margin: 0; padding: 0; }
h1 { font-size: clamp(1.6rem, 1.2rem + 1.6vw, 2.2rem); line-height: 1.2; letter-spacing: -0.02em; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; font-weight: 650; }
h3 { font-size: 0.9375rem; font-weight: 600; }
small, .hint, .lede, dt { color: var(--soft); }
small { font-size: 0.82em; font-weight: 400; }
section { margin-top: 2.75rem; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
button { font: inherit; color: inherit; cursor: pointer; }
input { accent-color: var(--c0); }
.hint { margin-top: 0.75rem; font-size: 0.85rem; max-width: 46rem; }
.eyebrow { display: flex; justify-content: space-between; gap: 0.25rem 1.5rem; flex-wrap: wrap; color: var(--soft); font-size: 0.82rem; margin-bottom: 0.6rem; }
.follow { margin-right: 0.9rem; }
.title { display: flex; align-items: center; gap: 0.5rem 1rem; flex-wrap: wrap; }
.status { display: inline-flex; align-items: center; gap: 0.45em; font-size: 0.85rem; font-weight: 600; white-space: nowrap; }
.status::before { content: ""; width: 0.6em; height: 0.6em; border-radius: 50%; background: currentColor; }
.title > .status { border: 1px solid currentColor; border-radius: 2em; padding: 0.15em 0.8em; }
.finished { color: var(--good); } .running { color: var(--busy); } .interrupted { color: var(--wait); } .failed, .error { color: var(--bad); }
.lede { margin-top: 0.4rem; }
.lede span:not(:last-child)::after { content: " ·"; }
.error { margin-top: 0.5rem; }
.progress { height: 4px; margin-top: 1.1rem; border-radius: 2px; background: var(--line); overflow: hidden; }
.progress i { display: block; height: 100%; background: var(--busy); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1.1rem 1.5rem; margin-top: 1.4rem; }
.facts dt { font-size: 0.82rem; }
.facts dd { font-size: 1.3rem; line-height: 1.3; font-weight: 600; letter-spacing: -0.01em; }
.facts small { display: inline-block; font-size: 0.82rem; letter-spacing: 0; }
.bar { display: flex; align-items: center; justify-content: space-between; gap: 0.5rem 1.5rem; flex-wrap: wrap; margin-bottom: 0.9rem; }
.choice { border: 0; display: flex; align-items: center; font-size: 0.85rem; }
.choice legend { float: left; margin-right: 0.7rem; color: var(--soft); }
.choice input { position: absolute; opacity: 0; pointer-events: none; }
.choice span { display: block; padding: 0.2rem 0.75rem; border: 1px solid var(--line); border-left-width: 0; background: var(--card); cursor: pointer; }
.choice label:first-of-type span { border-left-width: 1px; border-radius: 6px 0 0 6px; }
.choice label:last-of-type span { border-radius: 0 6px 6px 0; }
.choice :checked + span { background: var(--text); border-color: var(--text); color: var(--page); }
.choice :focus-visible + span { outline: 2px solid var(--c0); outline-offset: 2px; }
.charts { display: grid; grid-template-columns: repeat(12, 1fr); gap: 1rem; }
.chart { grid-column: span 6; padding: 0.9rem 1.1rem 0.8rem 0.6rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; min-width: 0; }
.chart:first-child, .chart:last-child:nth-child(even) { grid-column: 1 / -1; }
.chart figcaption { display: flex; align-items: baseline; gap: 0.2rem 0.8rem; flex-wrap: wrap; padding-left: 0.5rem; margin-bottom: 0.7rem; }
.chart .values { margin-left: auto; display: flex; gap: 0 0.9rem; flex-wrap: wrap; justify-content: flex-end; font-size: 0.9rem; font-weight: 600; min-height: 1.5em; }
.chart .values .at, .chart .values small { font-weight: 400; color: var(--soft); }
.scale { border: 1px solid var(--line); background: none; border-radius: 5px; padding: 0 0.5em; font-size: 0.78rem; line-height: 1.5; color: var(--soft); }
.scale[aria-pressed="true"] { background: var(--text); border-color: var(--text); color: var(--page); }
.frame { display: grid; grid-template-columns: 3.6rem 1fr; font-size: 0.76rem; color: var(--soft); }
.plot { position: relative; height: 12rem; grid-column: 2; grid-row: 1; cursor: crosshair; touch-action: pan-y; }
.chart:first-child .plot { height: clamp(15rem, 30vw, 22rem); }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
.plot .grid { stroke: var(--grid); stroke-width: 1; stroke-linecap: butt; }
.exact { stroke-width: 2; }
.plot .dots { stroke-width: 5; }
.raw { stroke-width: 1; opacity: 0.38; }
[data-runs="1"] .raw { opacity: 0.45; }
.smooth { stroke-width: 2; display: none; }
[data-smoothing="0"] .raw { opacity: 1; stroke-width: 1.25; }
[data-smoothing="1"] .s1, [data-smoothing="2"] .s2, [data-smoothing="3"] .s3 { display: inline; }
.plot .resume { stroke: var(--soft); stroke-dasharray: 2 4; }
.plot .broken { stroke: var(--bad); fill: var(--bad); fill-opacity: 0.14; stroke-width: 1.5; }
.broken-note { color: var(--soft); font-size: 0.82rem; margin: 0.5rem 0 0 0.5rem; }
.broken-note b { color: var(--bad); }
[data-scale="log"] .linear, [data-scale="linear"] .log { display: none; }
.ticks { position: relative; }
.ticks.y { grid-column: 1; grid-row: 1; }
.ticks.x { grid-column: 2; grid-row: 2; height: 1.6rem; }
.ticks span { position: absolute; white-space: nowrap; line-height: 1; }
.ticks.y span { right: 0.6rem; transform: translateY(-50%); }
.ticks.x span { top: 0.6rem; transform: translateX(-50%); }
.ticks.x .end { transform: translateX(-80%); }
.cursor { position: absolute; top: 0; bottom: 0; border-left: 1px solid var(--soft); display: none; pointer-events: none; }
.dot { position: absolute; width: 9px; height: 9px; margin: -4.5px; border-radius: 50%; border: 2px solid var(--card); pointer-events: none; }
.swatch { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 3px; margin-right: 0.35em; }
.ink-0 path { stroke: var(--c0); } .ink-1 path { stroke: var(--c1); } .ink-2 path { stroke: var(--c2); } .ink-3 path { stroke: var(--c3); }
.ink-4 path { stroke: var(--c4); } .ink-5 path { stroke: var(--c5); } .ink-6 path { stroke: var(--c6); } .ink-7 path { stroke: var(--c7); }
.colour-0 { background: var(--c0); } .colour-1 { background: var(--c1); } .colour-2 { background: var(--c2); } .colour-3 { background: var(--c3); }
.colour-4 { background: var(--c4); } .colour-5 { background: var(--c5); } .colour-6 { background: var(--c6); } .colour-7 { background: var(--c7); }
.slider { display: flex; align-items: center; gap: 0.7rem; font-size: 0.85rem; flex: 1 1 18rem; max-width: 34rem; }
.slider input { flex: 1; min-width: 6rem; }
.slider output { min-width: 4.5em; font-weight: 600; }
.slider button, .thumb { border: 1px solid var(--line); background: var(--card); border-radius: 6px; }
.slider button { padding: 0.15rem 0.8rem; min-width: 4.6rem; }
.sample-runs { display: flex; gap: 1rem; flex-wrap: wrap; }
.samples { flex: 1 1 20rem; min-width: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.samples h3 { margin-bottom: 0.7rem; }
.pixels img { image-rendering: pixelated; }
.samples img { display: block; background: #000; }
.viewer img { width: auto; height: min(32rem, 70vh); max-width: 100%; object-fit: contain; object-position: left top; border-radius: 4px; background: none; }
.viewer figcaption { margin-top: 0.5rem; font-size: 0.85rem; color: var(--soft); }
[data-runs="1"] .samples { display: flex; gap: 1.5rem; align-items: flex-start; }
[data-runs="1"] .viewer { flex: 0 1 auto; max-width: 55%; }
.strip { display: flex; gap: 0.6rem; overflow-x: auto; padding: 3px; flex: 1 1 0; min-width: 0; }
[data-runs="1"] .strip { flex-wrap: wrap; overflow: visible; }
[data-runs="1"] .thumb img { height: 12rem; max-width: 14rem; }
[data-runs]:not([data-runs="1"]) .strip { margin-top: 0.8rem; }
.thumb { flex: none; padding: 0.3rem; font-size: 0.76rem; line-height: 1.2; color: var(--soft); }
.thumb img { height: 9rem; width: auto; max-width: 12rem; object-fit: cover; border-radius: 3px; margin-bottom: 0.3rem; }
.thumb[aria-current="true"] { border-color: var(--text); color: var(--text); box-shadow: inset 0 0 0 1px var(--text); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; }
th { text-align: left; font-weight: 400; }
thead th { color: var(--soft); font-size: 0.8rem; white-space: nowrap; }
td, th { padding: 0.4rem 1.2rem 0.4rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
.runs { margin-top: 1.2rem; }
.runs td:nth-child(n + 3), .runs th:nth-child(n + 3) { text-align: right; white-space: nowrap; }
.runs tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 10rem; }
.runs small.error { display: block; max-width: 22rem; margin-top: 0.2rem; white-space: normal; }
.settings td { overflow-wrap: anywhere; }
.settings th { color: var(--soft); }
.settings .absent { color: var(--soft); }
.columns table { display: block; columns: 20rem; column-gap: 3rem; }
.columns tbody { display: block; margin-bottom: 1.6rem; break-inside: avoid; }
.columns tr { display: grid; grid-template-columns: 1fr 1fr; break-inside: avoid; border-bottom: 1px solid var(--line); }
.columns td, .columns th { border: 0; padding: 0.32rem 0.8rem 0.32rem 0; }
.columns td { text-align: right; padding-right: 0; }
.settings .group th { color: var(--text); font-weight: 600; padding-top: 0.9rem; break-after: avoid; }
.columns .group { grid-template-columns: 1fr; }
.columns .group th { padding-top: 0; }
.compared thead th { font-weight: 600; color: var(--text); }
.compared .differs td { background: var(--mark); }
.compared .differs th { color: var(--text); font-weight: 600; }
.compared td, .compared th { padding-left: 0.5rem; }
.only { font-size: 0.85rem; }
.only-differences .compared tr.same, .only-differences .compared tbody.same { display: none; }
.empty { margin-top: 2.5rem; padding: 2.5rem; text-align: center; color: var(--soft); border: 1px dashed var(--line); border-radius: 10px; }
@media (max-width: 44rem) {
  .chart, .chart:first-child { grid-column: 1 / -1; }
  .chart { padding-right: 0.9rem; }
  .frame { grid-template-columns: 3.1rem 1fr; }
  .ticks.x .odd { display: none; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  [data-runs="1"] .samples { display: block; }
  [data-runs="1"] .viewer { max-width: none; margin-bottom: 1rem; }
  [data-runs="1"] .strip { flex-wrap: nowrap; overflow-x: auto; }
  .viewer img { height: min(24rem, 60vh); }
}
@media print {
  :root { --page: #fff; }
  body { max-width: none; padding: 0; font-size: 0.8rem; }
  .scripted:not(.viewer), .thumb[aria-current="true"] { box-shadow: none; }
  .choice, .slider, .scale, .follow, .only, .chart .values .at { display: none !important; }
  .chart, .samples, tr { break-inside: avoid; }
  .strip { flex-wrap: wrap; overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
`;

/**
 * What a report does in a browser, as the text of a script: pointing at charts reads values, buttons change axis and smoothing,
 * check boxes show and hide runs, a slider goes through the samples. Without it the page shows the same things at rest.
 */
export const script = `
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const number = (value) => value.toLocaleString('en-US');
  const [from, to] = data.range;
  document.documentElement.classList.add('scripted');

  // Smoothing, axes, runs.
  for (const input of all('[name=smoothing]')) input.addEventListener('change', () => { document.body.dataset.smoothing = input.value; });
  for (const button of all('.scale')) {
    button.addEventListener('click', () => {
      const chart = button.closest('.chart');
      const log = chart.dataset.scale !== 'log';
      chart.dataset.scale = log ? 'log' : 'linear';
      button.setAttribute('aria-pressed', String(log));
    });
  }
  const hidden = new Set();
  for (const box of all('input[data-run]')) {
    const apply = () => {
      const run = box.dataset.run;
      if (box.checked) hidden.delete(run); else hidden.add(run);
      for (const part of all('.run-' + run)) part.classList.toggle('off', !box.checked);
    };
    box.addEventListener('change', apply);
    apply(); // a browser may remember boxes over a reload
  }
  const only = document.getElementById('only-differences');
  if (only) {
    const apply = () => document.body.classList.toggle('only-differences', only.checked);
    only.addEventListener('change', apply);
    apply();
  }

  // Values under the pointer, in all charts at once.
  const short = (value, bytes) => {
    if (value === null) return '–';
    if (bytes) {
      const mib = value / 2 ** 20;
      return mib >= 1000 ? Number((mib / 1024).toPrecision(3)) + ' GiB' : Number(mib.toPrecision(3)) + ' MiB';
    }
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(2).replace(/\\.?0+e/, 'e').replace('e+', 'e');
    return size >= 1000 ? number(Math.round(value)) : String(Number(value.toPrecision(4)));
  };
  const nearest = (steps, step) => {
    let [low, high] = [0, steps.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    return step - steps[low] <= steps[high] - step ? low : high;
  };
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const charts = data.charts.map((chart) => {
    const figure = document.getElementById('chart-' + chart.metric);
    const values = figure.querySelector('.values');
    return { ...chart, figure, values, rest: [...values.childNodes], plot: figure.querySelector('.plot'), cursor: figure.querySelector('.cursor') };
  });
  const show = (chart, step) => {
    const { figure, values, plot, cursor, curves, bytes } = chart;
    for (const dot of all('.dot', plot)) dot.remove();
    cursor.style.display = 'block';
    cursor.style.left = (100 * (step - from)) / (to - from) + '%';
    const level = Number(document.body.dataset.smoothing);
    const [low, high] = figure.dataset.scale === 'log' ? chart.log : chart.linear;
    const parts = [element('span', 'at', 'step ' + number(Math.round(step)))];
    curves.forEach((curve, run) => {
      if (!curve || hidden.has(String(run))) return;
      const i = nearest(curve.steps, step);
      const beyond = step > curve.steps[curve.steps.length - 1] * 1.005 + 1 || step < curve.steps[0] - 1;
      const value = beyond ? null : curve.smooth[level - 1]?.[i] ?? curve.mean[i];
      const part = element('span', '');
      if (data.runs.length > 1) part.append(element('i', 'swatch colour-' + data.runs[run].colour));
      part.append(short(value, bytes));
      if (!beyond && data.runs.length === 1 && curve.low[i] !== null && curve.low[i] !== curve.high[i]) {
        part.append(' ', element('small', '', short(curve.low[i], bytes) + ' to ' + short(curve.high[i], bytes)));
      }
      parts.push(part);
      if (value === null || (figure.dataset.scale === 'log' && value <= 0)) return;
      const y = figure.dataset.scale === 'log' ? Math.log(high / value) / Math.log(high / low) : (high - value) / (high - low);
      const dot = element('i', 'dot colour-' + data.runs[run].colour);
      dot.style.left = (100 * (curve.steps[i] - from)) / (to - from) + '%';
      dot.style.top = 100 * Math.min(Math.max(y, 0), 1) + '%';
      plot.append(dot);
    });
    values.replaceChildren(...parts);
  };
  const rest = () => {
    for (const { values, rest, plot, cursor } of charts) {
      for (const dot of all('.dot', plot)) dot.remove();
      cursor.style.display = 'none';
      values.replaceChildren(...rest);
    }
  };
  let at = to;
  const pointAt = (step) => {
    at = Math.min(Math.max(step, from), to);
    for (const chart of charts) show(chart, at);
  };
  for (const chart of charts) {
    const { figure, plot, values } = chart;
    const point = (event) => {
      const { left, width } = plot.getBoundingClientRect();
      pointAt(from + ((event.clientX - left) / width) * (to - from));
    };
    plot.addEventListener('pointermove', point);
    plot.addEventListener('pointerdown', point);
    plot.addEventListener('pointerleave', rest);
    figure.addEventListener('blur', () => { values.removeAttribute('aria-live'); rest(); });
    figure.addEventListener('keydown', (event) => {
      if (event.target !== figure) return;
      const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: -20, PageUp: 20 }[event.key];
      const end = { Home: from, End: to }[event.key];
      if (event.key === 'Escape') return rest();
      if (move === undefined && end === undefined) return;
      event.preventDefault();
      values.setAttribute('aria-live', 'polite');
      pointAt(end ?? at + (move * (to - from)) / 200);
    });
  }

  // Samples.
  const slider = document.getElementById('sample-step');
  if (slider) {
    const output = document.querySelector('.slider output');
    const strips = all('.samples').map((samples) => ({
      image: samples.querySelector('.viewer img'), caption: samples.querySelector('.viewer figcaption'), thumbs: all('.thumb', samples),
    }));
    const select = () => {
      const step = data.samples[Number(slider.value)];
      output.textContent = number(step);
      slider.setAttribute('aria-valuetext', 'step ' + number(step));
      for (const { image, caption, thumbs } of strips) {
        const chosen = thumbs.findLast((thumb) => Number(thumb.dataset.step) <= step) ?? thumbs[0];
        const picture = chosen.querySelector('img');
        image.src = picture.src;
        image.alt = picture.alt;
        caption.textContent = 'after step ' + number(Number(chosen.dataset.step));
        for (const thumb of thumbs) thumb.setAttribute('aria-current', String(thumb === chosen));
      }
    };
    slider.addEventListener('input', select);
    for (const { thumbs } of strips) {
      for (const thumb of thumbs) {
        thumb.addEventListener('click', () => {
          slider.value = String(data.samples.indexOf(Number(thumb.dataset.step)));
          select();
        });
      }
    }
    const play = document.getElementById('play');
    let timer;
    const stop = () => { clearInterval(timer); timer = undefined; play.textContent = 'Play'; };
    play.addEventListener('click', () => {
      if (timer !== undefined) return stop();
      if (Number(slider.value) === data.samples.length - 1) slider.value = '0';
      select();
      play.textContent = 'Stop';
      timer = setInterval(() => {
        slider.value = String(Number(slider.value) + 1);
        select();
        if (Number(slider.value) === data.samples.length - 1) stop();
      }, 400);
    });
    select();
  }

  // A page of a running run can reload itself; the choice is in its address, so it outlives the reload.
  const follow = document.getElementById('follow');
  if (follow) {
    let timer;
    const apply = () => {
      clearTimeout(timer);
      if (follow.checked) timer = setTimeout(() => location.reload(), 10000);
    };
    follow.checked = location.hash === '#follow';
    follow.addEventListener('change', () => {
      history.replaceState(null, '', follow.checked ? '#follow' : location.pathname);
      apply();
    });
    apply();
  }
})();
`;

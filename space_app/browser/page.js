// What the page shows when: nothing yet, a scan on its way, an error, or a result.
(() => {
  const find = (name) => document.querySelector(name);
  const FORGOTTEN = 'The scan was forgotten, as it is half an hour after its last use: ' +
    'upload it again.';
  let viewer = null;
  let drawn = Promise.resolve(); // one scan is drawn after the other

  const setState = (state) => {
    document.body.dataset.state = state;
    const inputs = find('#inputs');
    if (inputs) inputs.inert = state === 'running';
  };

  const tell = (text) => {
    const message = find('#message');
    message.textContent = text;
    message.hidden = !text;
    if (!text) return;
    message.focus({ preventScroll: true });
    message.scrollIntoView({ block: 'center' });
  };

  // An error of a scan ends its run; the result of the scan before is gone already.
  const fail = (text) => {
    if (document.body.dataset.state === 'running') setState('error');
    find('#status').textContent = '';
    tell(text);
  };

  const begin = () => {
    tell('');
    setState('running');
    find('#status').textContent = 'Reading and scoring the scan …';
  };

  // A request ended without a result: usually a toast says why.
  const end = () => {
    if (document.body.dataset.state === 'running') {
      fail('The scan could not be analysed, and the server does not say why: try it again.');
    }
  };

  const showSlices = () => {
    document.body.classList.add('no-webgl');
    find('#want-slices').click();
  };

  const makeViewer = async () => {
    const canvas = find('#planes');
    viewer = new window.Viewer(canvas, tellSlice);
    if (window.innerWidth <= 640) viewer.plane = 'axial';
    await viewer.start(new URL('niivue/niivue.umd.js', window.gradio_config.root + '/').href);
    canvas.viewer = viewer;
    for (const button of document.querySelectorAll('[data-plane]')) {
      button.addEventListener('click', () => choosePlane(button.dataset.plane));
    }
    for (const box of document.querySelectorAll('[data-layer]')) {
      box.addEventListener('change', () => chooseLayer(box));
    }
    find('#hide').addEventListener('click', hide);
    find('#plane-slice').addEventListener('input', (event) => {
      viewer.slice = Number(event.target.value);
    });
    find('#overlay-opacity').addEventListener('input', (event) => {
      viewer.setOpacity(event.target.value / 100);
    });
    for (const name of ['#window', '#level']) {
      find(name).addEventListener('input', () => {
        viewer.setWindow(Number(find('#window').value), Number(find('#level').value));
      });
    }
  };

  const choosePlane = (plane) => {
    viewer.setPlane(plane);
    for (const button of document.querySelectorAll('[data-plane]')) {
      button.setAttribute('aria-pressed', button.dataset.plane === plane);
    }
    find('#plane-slice').disabled = plane === 'brain';
  };

  const chooseLayer = (box) => {
    const name = box.dataset.layer;
    const scores = find('[data-layer=scores]');
    if (name === 'doubt' && box.checked && scores.checked) scores.click(); // one colour at a time
    if (name === 'doubt' && box.checked && !viewer.hasDoubt) {
      find('#status').textContent = 'Computing the uncertainty of the whole scan …';
      find('#doubt').click(); // the server answers through `doubt`
    } else {
      viewer.setLayer(name, box.checked);
    }
  };

  const hide = () => {
    viewer.setHidden(!viewer.hidden);
    find('#hide').setAttribute('aria-pressed', viewer.hidden);
  };

  const tellSlice = () => {
    if (!viewer.nv.volumes.length || viewer.plane === 'brain') return;
    const slider = find('#plane-slice');
    const [at, least, greatest] = viewer.slice;
    [slider.min, slider.max, slider.value] = [least, greatest, at];
    const plane = viewer.plane === 'planes' ? 'axial' : viewer.plane;
    find('#slice-label').textContent = `${plane[0].toUpperCase() + plane.slice(1)} slice ${at}`;
    if (viewer.nv.volumes.length > 1) {
      find('#here').textContent = `Score here ${viewer.score.toFixed(2)}`;
    }
  };

  const rows = () => [...document.querySelectorAll('#findings tr[data-point]')];

  const goTo = (row, follow = false) => {
    rows().forEach((other) => other.removeAttribute('aria-current'));
    row.setAttribute('aria-current', 'true');
    if (document.body.classList.contains('no-webgl')) {
      const number = find('#slice input[type=number]');
      number.value = row.dataset.slice;
      number.dispatchEvent(new Event('input', { bubbles: true }));
    } else {
      viewer.go(row.dataset.point.split(',').map(Number));
    }
    if (follow) find('#viewer').scrollIntoView({ block: 'nearest' }); // on a phone it is above
  };

  const goToNext = () => {
    const all = rows();
    const next = (all.findIndex((row) => row.hasAttribute('aria-current')) + 1) % all.length;
    if (all.length) goTo(all[next], true);
  };

  const draw = (layers) => {
    delete find('#planes').dataset.volumes;
    drawn = drawn.then(() => drawNow(layers));
    return drawn;
  };

  const drawNow = async (layers) => {
    find('#truth-layer').hidden = !layers.has_truth;
    find('#doubt-layer').hidden = !layers.draws_noise;
    find('#save-mask-dicom').hidden = !layers.from_dicom;
    for (const box of document.querySelectorAll('[data-layer]')) {
      box.checked = box.dataset.layer !== 'doubt';
    }
    if (!window.Viewer.isPossible()) return showSlices();
    try {
      if (!viewer) await makeViewer();
      Object.assign(viewer.layers, { scores: true, mask: true, truth: true });
      viewer.hidden = false;
      [find('#window').value, find('#level').value] = [255, 128];
      find('#hide').setAttribute('aria-pressed', false);
      await viewer.show(layers);
      choosePlane(viewer.plane);
      find('#planes').dataset.volumes = viewer.nv.volumes.length;
      if (rows().length) goTo(rows()[0]);
    } catch (error) {
      console.error(error);
      showSlices();
    }
  };

  // On an empty page an example opens by itself, and leaves the focus where it is.
  const open = async (layers) => {
    if (!layers || document.body.dataset.state) return;
    setState('result');
    await draw(layers);
  };

  const show = async (layers) => {
    tell('');
    setState('result');
    find('#status').textContent = '';
    find('#result').focus({ preventScroll: true });
    find('#result').scrollIntoView();
    await draw(layers);
  };

  // The server no longer has what is to be seen.
  const forget = () => {
    if (document.body.dataset.state !== 'result') return;
    setState('error');
    tell(FORGOTTEN);
  };

  const outline = async (layer) => {
    if (!layer) forget();
    else if (viewer) await viewer.outline(layer);
  };

  const doubt = async (layer) => {
    find('#status').textContent = '';
    if (layer) await viewer.addDoubt(layer);
    else forget();
  };

  // A file comes as base64 and is saved by the browser, so that it never lies on the server.
  const save = (file) => {
    if (!file) return forget();
    const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([bytes], { type: 'application/octet-stream' }));
    link.download = file.name;
    document.body.appendChild(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  // Gradio tells errors of uploads, requests and its queue in toasts that vanish and lie over the
  // disclaimer: they are hidden, and their words stay beside the scan.
  new MutationObserver((changes) => {
    for (const node of changes.flatMap((change) => [...change.addedNodes])) {
      const toast = node.querySelector?.('[data-testid=toast-text]') ??
        node.querySelector?.('.toast-text');
      if (toast) fail(toast.textContent.trim());
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener('change', (event) => {
    if (event.target.matches('#scan input[type=file]')) begin();
  }, true);
  document.addEventListener('drop', (event) => {
    if (event.target.closest?.('#scan') && event.dataTransfer.files.length) begin();
  }, true);
  window.addEventListener('resize', () => viewer?.fit());
  document.addEventListener('click', (event) => {
    const row = event.target.closest?.('#findings tr[data-point]');
    if (row) goTo(row, true);
  });
  // Single letters count only while the focus is in the result, and not in a field.
  document.addEventListener('keydown', (event) => {
    const typing = event.target.matches('input[type=number], input[type=text], textarea');
    if (!event.target.closest?.('#results') || typing || event.ctrlKey || event.metaKey) return;
    if (event.key === 'h' || event.key === 'H') hide();
    if (event.key === 'n' || event.key === 'N') goToNext();
  }, true);

  window.page = { begin, end, open, show, outline, doubt, save };
})();

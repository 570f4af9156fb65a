// What the page shows when: nothing yet, a scan on its way, an error, or a result.
(() => {
  const find = (name) => document.querySelector(name);
  const FORGOTTEN = 'The scan was forgotten, as it is half an hour after its last use: ' +
    'upload it again.';

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

  // What the fields of the scan and of its brain mask hold once the scan was read. A mask that was
  // not given stays untouched: Gradio would empty its field only when it is next unfolded, and with
  // it a mask that was given meanwhile.
  const emptied = (scan, mask) => [null, mask ? null : { __type__: 'update' }];

  // A request ended without a result: usually a toast says why.
  const end = (scan, mask) => {
    if (document.body.dataset.state === 'running') {
      fail('The scan could not be analysed, and the server does not say why: try it again.');
    }
    return emptied(scan, mask);
  };

  const showSlices = () => {
    document.body.classList.add('no-webgl');
    find('#want-slices').click();
  };

  const controls = new window.Controls({
    address: () => new URL('niivue/niivue.umd.js', window.gradio_config.root + '/').href,
    askDoubt: () => {
      find('#status').textContent = 'Computing the uncertainty of the whole scan …';
      find('#doubt').click(); // the server answers through `doubt`
    },
    goToSlice: (slice) => {
      const number = find('#slice input[type=number]');
      number.value = slice;
      number.dispatchEvent(new Event('input', { bubbles: true }));
    },
  });

  const draw = async (layers) => {
    find('#save-mask-dicom').hidden = !layers.from_dicom;
    if (!(await controls.draw(layers))) showSlices();
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
    else if (controls.viewer) await controls.viewer.outline(layer);
  };

  const doubt = async (layer) => {
    find('#status').textContent = '';
    if (layer) await controls.viewer.addDoubt(layer);
    else forget();
  };

  // A file comes as base64 and is saved by the browser, so that it never lies on the server.
  const save = (file) => {
    if (!file) return forget();
    const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
    window.Controls.save(file.name, bytes);
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

  window.page = { begin, end, emptied, open, show, outline, doubt, save };
})();

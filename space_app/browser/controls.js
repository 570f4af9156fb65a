// Lets a person move through a result: planes, layers, slices, findings; `window.Controls` is used
// by the pages' own scripts.
(() => {
  const find = (name) => document.querySelector(name);

  class Controls {
    // address: gives where NiiVue lies. askDoubt: is called for an uncertainty that is not there yet.
    // goToSlice: takes the number of a slice where the browser has no WebGL2.
    constructor({ address, askDoubt = () => {}, goToSlice = () => {} }) {
      Object.assign(this, { address, askDoubt, goToSlice });
      this.viewer = null;
      this.drawn = Promise.resolve(); // one scan is drawn after the other
      this.listen();
    }

    // Gives false where the browser cannot draw.
    draw(layers) {
      delete find('#planes').dataset.volumes;
      this.drawn = this.drawn.then(() => this.drawNow(layers));
      return this.drawn;
    }

    async drawNow(layers) {
      find('#truth-layer').hidden = !layers.has_truth;
      find('#doubt-layer').hidden = !layers.draws_noise;
      for (const box of document.querySelectorAll('[data-layer]')) {
        box.checked = box.dataset.layer !== 'doubt';
      }
      if (!window.Viewer.isPossible()) return false;
      try {
        if (!this.viewer) await this.makeViewer();
        const { viewer } = this;
        Object.assign(viewer.layers, { scores: true, mask: true, truth: true });
        viewer.hidden = false;
        [find('#window').value, find('#level').value] = [255, 128];
        find('#hide').setAttribute('aria-pressed', false);
        await viewer.show(layers);
        this.choosePlane(viewer.plane);
        find('#planes').dataset.volumes = viewer.nv.volumes.length;
        if (this.rows.length) this.goTo(this.rows[0]);
        return true;
      } catch (error) {
        console.error(error);
        return false;
      }
    }

    async makeViewer() {
      const canvas = find('#planes');
      const viewer = new window.Viewer(canvas, () => this.tellSlice());
      if (window.innerWidth <= 640) viewer.plane = 'axial';
      await viewer.start(this.address());
      canvas.viewer = this.viewer = viewer;
      for (const button of document.querySelectorAll('[data-plane]')) {
        button.addEventListener('click', () => this.choosePlane(button.dataset.plane));
      }
      for (const box of document.querySelectorAll('[data-layer]')) {
        box.addEventListener('change', () => this.chooseLayer(box));
      }
      find('#hide').addEventListener('click', () => this.hide());
      find('#plane-slice').addEventListener('input', (event) => {
        this.viewer.slice = Number(event.target.value);
      });
      find('#overlay-opacity').addEventListener('input', (event) => {
        this.viewer.setOpacity(event.target.value / 100);
      });
      for (const name of ['#window', '#level']) {
        find(name).addEventListener('input', () => {
          this.viewer.setWindow(Number(find('#window').value), Number(find('#level').value));
        });
      }
    }

    choosePlane(plane) {
      this.viewer.setPlane(plane);
      for (const button of document.querySelectorAll('[data-plane]')) {
        button.setAttribute('aria-pressed', button.dataset.plane === plane);
      }
      find('#plane-slice').disabled = plane === 'brain';
    }

    chooseLayer(box) {
      const name = box.dataset.layer;
      const scores = find('[data-layer=scores]');
      if (name === 'doubt' && box.checked && scores.checked) scores.click(); // one colour at a time
      if (name === 'doubt' && box.checked && !this.viewer.hasDoubt) this.askDoubt();
      else this.viewer.setLayer(name, box.checked);
    }

    hide() {
      this.viewer.setHidden(!this.viewer.hidden);
      find('#hide').setAttribute('aria-pressed', this.viewer.hidden);
    }

    tellSlice() {
      const { viewer } = this;
      if (!viewer?.nv.volumes.length || viewer.plane === 'brain') return;
      const slider = find('#plane-slice');
      const [at, least, greatest] = viewer.slice;
      [slider.min, slider.max, slider.value] = [least, greatest, at];
      const plane = viewer.plane === 'planes' ? 'axial' : viewer.plane;
      find('#slice-label').textContent = `${plane[0].toUpperCase() + plane.slice(1)} slice ${at}`;
      if (viewer.nv.volumes.length > 1) {
        find('#here').textContent = `Score here ${viewer.score.toFixed(2)}`;
      }
    }

    get rows() { return [...document.querySelectorAll('#findings tr[data-point]')]; }

    goTo(row, follow = false) {
      this.rows.forEach((other) => other.removeAttribute('aria-current'));
      row.setAttribute('aria-current', 'true');
      if (!this.viewer) this.goToSlice(row.dataset.slice);
      else this.viewer.go(row.dataset.point.split(',').map(Number));
      if (follow) find('#viewer').scrollIntoView({ block: 'nearest' }); // on a phone it is above
    }

    goToNext() {
      const all = this.rows;
      const next = (all.findIndex((row) => row.hasAttribute('aria-current')) + 1) % all.length;
      if (all.length) this.goTo(all[next], true);
    }

    // The browser saves bytes as a file.
    static save(name, bytes) {
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([bytes], { type: 'application/octet-stream' }));
      link.download = name;
      document.body.appendChild(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    }

    listen() {
      window.addEventListener('resize', () => this.viewer?.fit());
      document.addEventListener('click', (event) => {
        const row = event.target.closest?.('#findings tr[data-point]');
        if (row) this.goTo(row, true);
      });
      // Single letters count only while the focus is in the result, and not in a field.
      document.addEventListener('keydown', (event) => {
        const typing = event.target.matches('input[type=number], input[type=text], textarea');
        if (!event.target.closest?.('#results') || typing || event.ctrlKey || event.metaKey) return;
        if (this.viewer && (event.key === 'h' || event.key === 'H')) this.hide();
        if (event.key === 'n' || event.key === 'N') this.goToNext();
      }, true);
    }
  }
  window.Controls = Controls;
})();

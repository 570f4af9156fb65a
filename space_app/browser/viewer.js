// Draws a scan and its layers with NiiVue; `window.Viewer` is used by page.js.
(() => {
  const SLICE_TYPES = { axial: 0, coronal: 1, sagittal: 2, planes: 3, brain: 4 };
  // Tiles of the three planes, in shares of the canvas: left, top, width and height.
  const WIDE = [[0, 0, 0, 0.6, 1], [1, 0.6, 0, 0.4, 0.5], [2, 0.6, 0.5, 0.4, 0.5]];
  const TALL = [[0, 0, 0, 1, 0.6], [1, 0, 0.6, 0.5, 0.4], [2, 0.5, 0.6, 0.5, 0.4]];
  const AXES = { axial: 2, planes: 2, coronal: 1, sagittal: 0 }; // that the slices are counted on
  const MASK_BIT = 1, TRUTH_BIT = 2; // of the volume of outlines
  const SWIPE = 14; // pixels of a swipe to the next slice
  const ramp = (low, high) => ({
    R: [low[0], (low[0] + high[0]) / 2, high[0]], G: [low[1], (low[1] + high[1]) / 2, high[1]],
    B: [low[2], (low[2] + high[2]) / 2, high[2]], A: [0, 255, 255], I: [0, 128, 255],
  });
  // The opacity of a value is (value / cal_min)^2: low ones are much fainter, as in the pictures
  // of the command line.
  const FADING = { cal_min: 255, cal_max: 256, colormapType: 1 };
  const OUTLINES = { // none, mask, truth, both
    R: [0, 255, 70, 150], G: [0, 230, 220, 255], B: [0, 60, 255, 120], A: [0, 255, 255, 255],
    I: [0, 1, 2, 3], labels: ['', 'mask', 'truth', 'both'],
  };

  const hasWebGL2 = () => Boolean(document.createElement('canvas').getContext('webgl2'));

  const load = (address) => new Promise((done, failed) => {
    const script = document.createElement('script');
    script.src = address;
    script.onload = done;
    script.onerror = () => failed(new Error('the viewer did not load'));
    document.head.appendChild(script);
  });

  class Viewer {
    // `moved` is called when the crosshair or the plane has changed.
    constructor(canvas, moved) {
      this.canvas = canvas;
      this.moved = moved;
      this.plane = 'planes';
      this.layers = { scores: true, mask: true, truth: true, doubt: false };
      this.opacity = 0.7;
      this.hidden = false;
    }

    async start(address) {
      if (!window.niivue) await load(address);
      this.nv = new window.niivue.Niivue({
        backColor: [0, 0, 0, 1], dragAndDropEnabled: false, logLevel: 'error',
        isRadiologicalConvention: true, showAllOrientationMarkers: true, crosshairWidth: 0.3,
        crosshairColor: [0.3, 0.9, 0.4, 0.8], loadingText: '',
      });
      this.nv.onLocationChange = () => this.moved();
      await this.nv.attachToCanvas(this.canvas);
      this.nv.addColormap('scores', ramp([120, 20, 140], [255, 120, 40]));
      this.nv.addColormap('doubt', ramp([20, 60, 160], [80, 240, 255]));
      this.nv.drawRimOpacity = 1;
      this.nv.setDrawColormap(OUTLINES);
      this.listen();
    }

    async show(layers) {
      const files = [layers.scan, layers.scores, layers.outlines].map((file) => this.read(file));
      const [scan, scores, outlines] = await Promise.all(files);
      this.layers.doubt = false;
      this.firstSlice = layers.first_slice;
      this.atOnce(() => {
        while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
        this.nv.closeDrawing();
        this.add(scan, 'gray', { cal_min: 0, cal_max: 255 });
        this.add(scores, 'scores');
        this.layOut();
      });
      this.mix();
      this.draw(outlines);
    }

    read(file) {
      return window.niivue.NVImage.loadFromBase64({ name: file.name, base64: file.content });
    }

    add(volume, colormap, range = FADING) {
      this.nv.addVolume(Object.assign(volume, { colormap }, range));
    }

    // NiiVue mixes all layers after each of its steps, which takes seconds without a graphics card:
    // here it does nothing until all steps are done.
    atOnce(change) {
      const { nv } = this;
      nv.updateGLVolume = nv.drawScene = () => {};
      try { change(); } finally { delete nv.updateGLVolume; delete nv.drawScene; }
    }

    async outline(file) { this.draw(await this.read(file)); }

    draw(outlines) {
      this.nv.loadDrawing(outlines);
      this.bits = this.nv.drawBitmap.slice();
      this.paint();
    }

    async addDoubt(file) {
      if (!this.hasDoubt) {
        const volume = await this.read(file);
        // Another one may have come while this was read.
        this.atOnce(() => { if (!this.hasDoubt) this.add(volume, 'doubt'); });
      }
      this.layers.doubt = true;
      this.mix();
    }

    get hasDoubt() { return this.nv.volumes.length > 2; }

    setLayer(name, shown) {
      this.layers[name] = shown;
      this.paint();
    }

    setOpacity(opacity) {
      this.opacity = opacity;
      this.paint();
    }

    setHidden(hidden) {
      this.hidden = hidden;
      this.paint();
    }

    setPlane(plane) {
      this.plane = plane;
      this.atOnce(() => this.layOut());
      this.paint();
      this.moved();
    }

    layOut() {
      this.nv.setSliceType(SLICE_TYPES[this.plane]);
      this.nv.clearCustomLayout();
      if (this.plane === 'planes') this.arrange();
    }

    fit() {
      if (this.nv?.volumes.length && this.plane === 'planes') this.arrange();
    }

    arrange() {
      const { offsetWidth, offsetHeight } = this.canvas;
      const tiles = offsetWidth > 1.1 * offsetHeight ? WIDE : TALL;
      this.nv.setCustomLayout(tiles.map(([sliceType, ...position]) => ({ sliceType, position })));
    }

    setWindow(width, level) {
      const scan = this.nv.volumes[0];
      [scan.cal_min, scan.cal_max] = [level - width / 2, level + width / 2];
      this.nv.updateGLVolume();
    }

    get opacities() {
      const { layers } = this, inside = this.plane === 'brain';
      const colours = this.hidden || inside ? 0 : this.opacity;
      const [scores, doubt] = ['scores', 'doubt'].map((name) => (layers[name] ? colours : 0));
      return [inside ? 0.3 : 1, scores, doubt]; // the mask is seen through the brain
    }

    mix() {
      this.nv.volumes.forEach((volume, layer) => { volume.opacity = this.opacities[layer]; });
      this.nv.updateGLVolume();
    }

    // Bring what is drawn in line with what is asked for; layers are mixed anew only if they differ.
    paint() {
      const { nv, layers } = this, inside = this.plane === 'brain';
      const wanted = (layers.mask ? MASK_BIT : 0) | (layers.truth && !inside ? TRUTH_BIT : 0);
      nv.drawBitmap = this.bits.map((bits) => (this.hidden ? 0 : bits & wanted));
      nv.drawOpacity = inside ? 0.9 : 0.02; // in planes, outlines only
      nv.refreshDrawing(false);
      if (nv.volumes.some((volume, layer) => volume.opacity !== this.opacities[layer])) this.mix();
      else nv.drawScene();
    }

    go(point) {
      this.nv.scene.crosshairPos = this.nv.mm2frac(point);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    // Slice under the crosshair, the least and the greatest, counted from below in the whole scan.
    get slice() {
      const axis = AXES[this.plane], first = axis === 2 ? this.firstSlice : 0;
      const at = Math.round(this.nv.frac2vox(this.nv.scene.crosshairPos)[axis]);
      return [at + first, first, first + this.nv.volumes[0].dimsRAS[axis + 1] - 1];
    }

    set slice(number) { this.step(number - this.slice[0]); }

    step(count) {
      const move = [0, 0, 0];
      move[AXES[this.plane]] = count;
      this.nv.moveCrosshairInVox(...move);
    }

    get score() {
      const scores = this.nv.volumes[1], at = this.nv.frac2mm(this.nv.scene.crosshairPos);
      return scores.getValue(...scores.mm2vox(at)) / 255;
    }

    turn(right, up) {
      const { renderAzimuth, renderElevation } = this.nv.scene;
      this.nv.setRenderAzimuthElevation(renderAzimuth + right, renderElevation + up);
    }

    zoom(factor) { this.nv.setScale(this.nv.scene.volScaleMultiplier * factor); }

    // NiiVue's own keys are kept away: some of them, such as H, mean something else there.
    listen() {
      const stage = this.canvas.parentElement;
      stage.addEventListener('keydown', (event) => {
        if (this.press(event.key)) event.preventDefault();
        if (event.key !== 'Tab' && event.key.length > 1) event.stopPropagation();
      }, true);
      for (const kind of ['keyup', 'keydown']) {
        this.canvas.addEventListener(kind, (event) => event.stopImmediatePropagation(), true);
      }
      let start = null;
      stage.addEventListener('touchstart', (event) => {
        start = event.touches.length === 1 ? event.touches[0].clientX : null;
        if (this.plane !== 'brain') event.stopPropagation(); // so that the page can be scrolled
      }, true);
      stage.addEventListener('touchmove', (event) => {
        if (this.plane === 'brain' || start === null) return;
        event.stopPropagation();
        const count = Math.trunc((event.touches[0].clientX - start) / SWIPE);
        if (!count) return;
        start += count * SWIPE;
        this.step(count);
      }, true);
    }

    press(key) {
      const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
      const turns = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };
      const zooms = { '+': 1.1, '-': 1 / 1.1 };
      const known = this.plane === 'brain' ? turns[key] || zooms[key] : steps[key];
      if (!known) return false;
      if (this.plane !== 'brain') this.step(known);
      else if (zooms[key]) this.zoom(known);
      else this.turn(...known);
      return true;
    }
  }
  window.Viewer = Viewer;
  window.Viewer.isPossible = hasWebGL2;
})();

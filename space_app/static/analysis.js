// Scores a scan: bytes of a NIfTI file in; scores, masks, findings and files to take away out.
import { measureAnatomy, problemOf, sampleScan } from './anatomy.js';
import { boxOf, cutBox, rankOf } from './arrays.js';
import { zeroBackground } from './background.js';
import { measureFindings, maskAbove } from './findings.js';
import { Finisher } from './free_map.js';
import { check } from './header.js';
import { pack, readScan, unpack, writeLayer, writeMask } from './nifti.js';
import { recogniseSequence } from './recognition.js';
import { ScanView } from './scan_view.js';

const SMALLEST_BRAIN_ML = 0.1;
const SMALLEST_BACKGROUND = 0.2; // share of a scan's voxels, where all but the brain was removed
const THICKEST_SLICES_MM = 7.5;
const MARGIN = 4; // voxels around the brain that the viewer shows
const WHITE = 99.5; // percentile of the brain's intensities that is drawn white

export class Analysis {
  // `model` is an entry of models.json, and `table` its table of sequences. `score` takes
  // pixel values (4, size, size) and gives scores as `{data, side}`; `tell` learns (slices done,
  // slices in all), and the run goes on when it is done.
  static async of(file, model, table, score, tell = () => {}) {
    const scan = readScan(await unpack(file));
    const images = zeroBackground(scan);
    scan.voxelMl = scan.spacing.reduce((product, size) => product * size, 1) / 1000;
    const millilitres = images.brainVoxels * scan.voxelMl;
    check(
      images.brainVoxels,
      `no voxel differs from the background, ${images.background}; give a scan with a brain.`,
    );
    check(
      millilitres >= SMALLEST_BRAIN_ML,
      `only ${images.brainVoxels} voxels are not background; give a scan with a brain.`,
    );
    const analysis = new Analysis(scan, images, model, table);
    await analysis.run(score, tell);
    return analysis;
  }

  constructor(scan, images, model, table) {
    Object.assign(this, { scan, images, model });
    const sample = sampleScan(scan),
      anatomy = measureAnatomy(sample);
    this.problem = anatomy && problemOf(anatomy);
    this.looksLike = this.problem ? null : recogniseSequence(sample, table); // of brains alone
    this.brain = boxOf(images.slices, scan.shape);
  }

  async run(score, tell) {
    const { scan, images, model } = this,
      [depth, height, width] = scan.shape;
    const view = new ScanView(images.slices, scan.shape, scan.spacing, model);
    const withBrain = Array.from({ length: depth }, (_, index) => index).filter((index) =>
      view.showsBrain(index),
    );
    this.scores = new Float32Array(images.slices.length);
    for (const [done, index] of withBrain.entries()) {
      await tell(done, withBrain.length);
      const { data, side } = await score(view.channels(index));
      view.placeScores(
        data,
        side,
        index,
        this.scores.subarray(index * height * width, (index + 1) * height * width),
      );
    }
    await tell(withBrain.length, withBrain.length);
    this.finish();
  }

  finish() {
    const { scan, model, brain } = this,
      cut = (values) => cutBox(values, scan.shape, brain);
    const sizes = brain.high.map((end, axis) => end - brain.low[axis]);
    const scores = cut(this.scores);
    new Finisher(cut(this.images.slices), sizes, scan.spacing).finish(
      scores,
      model.smooth_mm,
      model.free_map,
    );
    let at = 0;
    for (let s = brain.low[0]; s < brain.high[0]; s++) {
      for (let r = brain.low[1]; r < brain.high[1]; r++, at += sizes[2]) {
        const to = (s * scan.shape[1] + r) * scan.shape[2] + brain.low[2];
        this.scores.set(scores.subarray(at, at + sizes[2]), to);
      }
    }
  }

  // Returns `{mask, millilitres, findings}` at a threshold in [0, 1].
  at(threshold) {
    const { scan, model } = this;
    const { mask, parts } = maskAbove(
      this.scores,
      scan.shape,
      threshold,
      model.smallest_ml / scan.voxelMl,
    );
    const findings = measureFindings(parts, this.scores, scan, this.brain);
    return { mask, millilitres: findings.reduce((sum, row) => sum + row.millilitres, 0), findings };
  }

  // Sentences on what forbids to rely on a result.
  get unfit() {
    const { scan, images } = this;
    const background = images.equal / scan.slices.length;
    const reasons = this.problem ? [this.problem] : [];
    if (background < SMALLEST_BACKGROUND) {
      reasons.push(
        `Only ${Math.round(100 * background)} % of the voxels are background: the model ` +
          'expects scans with everything but the brain removed.',
      );
    }
    if (scan.spacing[0] > THICKEST_SLICES_MM) {
      reasons.push(
        `Slices are ${scan.spacing[0].toPrecision(3)} mm apart, and the model expects ` +
          `${THICKEST_SLICES_MM} mm at most: lesions between them stay unseen.`,
      );
    }
    return reasons;
  }

  get warnings() {
    const { lowered } = this.images;
    const told = lowered
      ? [`${lowered} voxels far brighter than all around them were lowered to their neighbours.`]
      : [];
    return [...this.scan.warnings, ...told];
  }

  // --- Files -------------------------------------------------------------------------------------
  // The box that is shown: the brain's, with a margin.
  get window() {
    const { low, high } = this.brain;
    return {
      low: low.map((start) => Math.max(start - MARGIN, 0)),
      high: high.map((end, axis) => Math.min(end + MARGIN, this.scan.shape[axis])),
    };
  }

  // Bytes of the scan in greys and of its scores, from 0 to 255.
  layers() {
    const { slices } = this.images,
      white = rankOf(
        slices.filter((value) => value > 0),
        WHITE,
      );
    const layer = (values, factor) =>
      writeLayer(
        Uint8ClampedArray.from(values, (value) => value * factor),
        this.scan,
        this.window,
      );
    return {
      scan: layer(slices, 255 / white),
      scores: layer(this.scores, 255),
      first_slice: this.window.low[0],
    };
  }

  outlines(mask) {
    return writeLayer(mask, this.scan, this.window);
  }

  // The mask on the scan's own grid, a .nii.gz file.
  maskFile(mask) {
    return pack(writeMask(mask, this.scan));
  }
}

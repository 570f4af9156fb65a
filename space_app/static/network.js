// Runs the networks of models.json with onnxruntime-web, on one thread: static pages may not have
// several.
import * as ort from './onnxruntime/ort.wasm.bundle.min.mjs';
import { unpack } from './nifti.js';

// Returns sequence -> `score`, which takes pixel values (4, size, size) and gives `{data, side}`.
//
// `read` takes a path below the page's folder and gives its bytes.
export async function openNetworks(models, read) {
  ort.env.wasm.numThreads = 1;
  // Half of the page is this program, so it comes compressed, whatever the server does.
  ort.env.wasm.wasmBinary = await unpack(await read('onnxruntime/ort-wasm-simd-threaded.wasm.gz'));
  const networks = {};
  for (const [sequence, model] of Object.entries(models)) {
    const bytes = await read(`models/${model.file}`);
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] });
    networks[sequence] = async (values) => {
      const pixels = new ort.Tensor('float32', values, [1, 4, model.size, model.size]);
      const { scores } = await session.run({ pixel_values: pixels });
      return { data: scores.data, side: scores.dims[3] };
    };
  }
  return networks;
}

// Reads the plain NIfTI files that our server writes for looking at: enough for slices without WebGL.

const TYPES = {
  2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array,
  256: Int8Array, 512: Uint16Array, 768: Uint32Array,
};

export async function readNifti(address) {
  const buffer = await (await fetch(address)).arrayBuffer();
  const view = new DataView(buffer);
  if (view.getInt32(0, true) !== 348) throw new Error("not a little-endian NIfTI-1 file");
  const shape = [1, 2, 3].map((i) => view.getInt16(40 + 2 * i, true));
  const spacing = [1, 2, 3].map((i) => view.getFloat32(76 + 4 * i, true));
  const Kind = TYPES[view.getInt16(70, true)];
  const voxels = new Kind(buffer, view.getFloat32(108, true), shape[0] * shape[1] * shape[2]);
  const affine = [0, 1, 2].map((r) => [0, 1, 2, 3].map((c) => view.getFloat32(280 + 16 * r + 4 * c, true)));
  return { shape, spacing, affine, voxels, slope: view.getFloat32(112, true) || 1, shift: view.getFloat32(116, true), ...axes(affine) };
}

/** Per world axis, the array axis that lies closest to it and whether it runs the other way. */
function axes(rows) {
  const order = [], flipped = [];
  for (let world = 0; world < 3; world++) {
    const free = [0, 1, 2].filter((axis) => !order.includes(axis));
    const best = free.reduce((a, b) => (share(rows, world, b) > share(rows, world, a) ? b : a));
    order.push(best);
    flipped.push(rows[world][best] < 0);
  }
  return { order, flipped };
}

function share(rows, world, axis) {
  return Math.abs(rows[world][axis]) / Math.hypot(rows[0][axis], rows[1][axis], rows[2][axis]);
}

/** From (right, anterior, superior) indices to mm of the patient, and back with fractions. */
export function worlds({ shape, order, flipped, affine }) {
  const turn = (at, world) => (flipped[world] ? shape[order[world]] - 1 - at : at);
  const back = inverse(affine.map((row) => row.slice(0, 3)));
  return {
    millimetres: (at) => {
      const index = [];
      order.forEach((axis, world) => { index[axis] = turn(at[world], world); });
      return affine.map((row) => row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3]);
    },
    indices: (place) => {
      const from = place.map((v, i) => v - affine[i][3]);
      const index = back.map((row) => row[0] * from[0] + row[1] * from[1] + row[2] * from[2]);
      return order.map((axis, world) => turn(index[axis], world));
    },
    axes: [0, 1, 2].map((axis) => {
      const column = affine.map((row) => row[axis]);
      return column.map((v) => v / Math.hypot(...column));
    }),
  };
}

function inverse([a, b, c]) {
  const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  const columns = [cross(b, c), cross(c, a), cross(a, b)];
  const size = a.reduce((sum, v, i) => sum + v * columns[0][i], 0);
  return [0, 1, 2].map((row) => columns.map((column) => column[row] / size));
}

/** A function from (right, anterior, superior) indices to the value there. */
export function sampler(volume) {
  const { shape, order, flipped, voxels } = volume;
  const steps = [1, shape[0], shape[0] * shape[1]];
  return (...at) => {
    let index = 0;
    for (let world = 0; world < 3; world++) {
      const axis = order[world];
      index += steps[axis] * (flipped[world] ? shape[axis] - 1 - at[world] : at[world]);
    }
    return voxels[index] * volume.slope + volume.shift;
  };
}

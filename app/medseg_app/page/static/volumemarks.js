// Marks on the planes of NiiVue: from a place on the canvas to millimetres of the patient, and back.

import { Pointer, cleared, cover, drawMark } from "./marks.js";

const PLANES = ["axial", "coronal", "sagittal"]; // as NiiVue counts them
const THROUGH = [2, 1, 0]; // the axis across each
const TURNED = [[0, 1, 2], [0, 2, 1], [1, 2, 0]]; // across, up and through each
const WITHIN = 0.6; // voxels from the slice that is shown

export class VolumeMarks {
  constructor(frame, nv, hooks) {
    Object.assign(this, { nv, items: [], canvas: cover() });
    frame.append(this.canvas);
    this.pointer = new Pointer(frame, this, hooks);
    const scene = nv.drawScene;
    nv.drawScene = (...given) => { const drawn = scene.apply(nv, given); this.draw(); return drawn; };
    this.draw();
  }

  end() {
    this.pointer.end();
    this.canvas.remove();
    delete this.nv.drawScene; // that of the class comes back
  }

  show(items) {
    this.items = items;
    this.draw();
  }

  /** The middle of the voxel under the pointer; in the plane of `on` where that is given. */
  find(event, on = null) {
    const { nv } = this, bounds = this.canvas.getBoundingClientRect(), dpr = nv.uiData.dpr;
    const x = (event.clientX - bounds.left) * dpr, y = (event.clientY - bounds.top) * dpr;
    const tile = nv.tileIndex(x, y), plane = PLANES[nv.screenSlices[tile]?.axCorSag];
    if (!plane || (on && on.tile !== tile)) return null;
    const share = nv.screenXY2TextureFrac(x, y, tile, true);
    return share[0] < 0 ? null : { at: this.#middle(share), plane, tile };
  }

  /** Where the crosshair is, in the middle of its voxel. */
  crosshair() {
    return this.#middle(this.nv.scene.crosshairPos);
  }

  /** Directions of the edges of a box: those of the rows and columns of the image. */
  edges() {
    const { affine } = this.nv.volumes[0].hdr;
    const column = (i) => [0, 1, 2].map((row) => affine[row][i]);
    return { axes: [0, 1, 2].map((i) => column(i).map((v) => v / Math.hypot(...column(i)))) };
  }

  draw(draft = null) {
    const dpr = this.nv.uiData.dpr, context = cleared(this.canvas, dpr);
    this.nv.screenSlices.forEach((tile) => {
      if (!PLANES[tile.axCorSag]) return;
      this.items.forEach((mark, i) => this.#drawOn(context, tile, mark, i + 1, dpr));
      if (draft) this.#drawOn(context, tile, draft, null, dpr);
    });
  }

  #drawOn(context, tile, mark, number, dpr) {
    const corners = (mark.kind === "box" ? [mark.first, mark.last] : [mark.at]).map((at) => this.#onTile(tile, at));
    if (corners.every((corner) => corner !== null)) drawMark(context, mark, number, corners, dpr);
  }

  /** A place of the patient on a plane as it is shown, in px; null where it lies on another slice. */
  #onTile({ axCorSag, AxyzMxy: plane, leftTopMM, fovMM, leftTopWidthHeight: frame }, at) {
    const { nv } = this;
    const straight = nv.frac2mm(nv.mm2frac(at, 0, true), 0, false); // as NiiVue lays out an oblique volume
    const [across, up, through] = TURNED[axCorSag].map((axis) => straight[axis]);
    const shown = plane[2] + plane[4] * (up - plane[1]) - plane[3] * (across - plane[0]);
    if (Math.abs(through - shown) > WITHIN * nv.volumes[0].pixDimsRAS[1 + THROUGH[axCorSag]]) return null;
    let [left, top, width, height] = frame, right = (across - leftTopMM[0]) / fovMM[0];
    if (width < 0) { left += width; width = -width; right = 1 - right; }
    return [left + right * width, top + (1 - (up - leftTopMM[1]) / fovMM[1]) * height];
  }

  #middle(share) {
    const { nv } = this, voxel = nv.vox2frac(nv.frac2vox([...share]));
    return [...nv.frac2mm(voxel, 0, true)].slice(0, 3).map((v) => Number(v.toFixed(3)));
  }
}

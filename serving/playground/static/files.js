// A picture of one's own, cut to its middle square and brought to the model's size.

const WHICH = { 1: "grey", 3: "colours" };

/** The picture as PNG in base64; an Error with a sentence where it is none. */
export async function fitted(file, which, size, channels) {
  if (!file) throw new Error(`choose the ${which} file`);
  if (!WHICH[channels]) throw new Error(`a model of ${channels} channels takes no files here`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser reads`);
  }
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent, as where a data set is read
  context.fillRect(0, 0, size, size);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, size, size);
  return canvas.toDataURL("image/png").split(",")[1];
}

// An uploaded picture, cropped to its central square and resized for the model.

const WHICH = { 1: "grey", 3: "colours" };

/** Return the picture as PNG in base64; throw an Error if the browser cannot decode it. */
export async function fitted(file, which, size, channels) {
  if (!file) throw new Error(`choose the ${which} file`);
  if (!WHICH[channels]) throw new Error(`a model of ${channels} channels does not accept files here`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can decode`);
  }
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind transparency, as for data sets
  context.fillRect(0, 0, size, size);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, size, size);
  return canvas.toDataURL("image/png").split(",")[1];
}

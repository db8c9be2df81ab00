// Pictures as the model takes them: squares of its size.

export const base64 = (canvas) => canvas.toDataURL("image/png").split(",")[1];

export const blank = (size) => Object.assign(document.createElement("canvas"), { width: size, height: size });

/** Return the central square of a picture, resized, as a canvas; throw an Error if it cannot be decoded. */
export async function square(file, name, { image_size: size, in_channels: channels }) {
  if (!file) throw new Error(`choose ${name}`);
  if (channels !== 1 && channels !== 3) throw new Error(`a model of ${channels} channels does not accept files here`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can decode`);
  }
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = blank(size);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind transparency, as for data sets
  context.fillRect(0, 0, size, size);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, size, size);
  if (channels === 1) grey(context, size);
  return canvas;
}

/** Replace colours by their luma (ITU-R BT.601), as the server does. */
function grey(context, size) {
  const image = context.getImageData(0, 0, size, size), { data } = image;
  for (let i = 0; i < data.length; i += 4) {
    data.fill(Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]), i, i + 3);
  }
  context.putImageData(image, 0, 0);
}

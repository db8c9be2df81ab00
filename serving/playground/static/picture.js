// Pictures as the model takes them, at its size.

export const base64 = (canvas) => canvas.toDataURL("image/png").split(",")[1];

export const blank = ({ width, height }) => Object.assign(document.createElement("canvas"), { width, height });

/** Return width and height of a network's images; `image_size` is a side or [height, width]. */
export function sizeOf({ image_size: size }) {
  const [height, width] = Array.isArray(size) ? size : [size, size];
  return { width, height };
}

/** Return the middle of a picture at a network's size, as a canvas; throw an Error if it cannot be decoded. */
export async function fit(file, name, network) {
  const size = sizeOf(network), channels = network.in_channels, { width, height } = size;
  if (!file) throw new Error(`choose ${name}`);
  if (channels !== 1 && channels !== 3) throw new Error(`a model of ${channels} channels does not accept files here`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can decode`);
  }
  const scale = Math.min(bitmap.width / width, bitmap.height / height);
  const [cutWidth, cutHeight] = [width * scale, height * scale];
  const canvas = blank(size);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind transparency, as for data sets
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  const [left, top] = [(bitmap.width - cutWidth) / 2, (bitmap.height - cutHeight) / 2];
  context.drawImage(bitmap, left, top, cutWidth, cutHeight, 0, 0, width, height);
  if (channels === 1) grey(context, size);
  return canvas;
}

/** Replace colours by their luma (ITU-R BT.601), as the server does. */
function grey(context, { width, height }) {
  const image = context.getImageData(0, 0, width, height), { data } = image;
  for (let i = 0; i < data.length; i += 4) {
    data.fill(Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]), i, i + 3);
  }
  context.putImageData(image, 0, 0);
}

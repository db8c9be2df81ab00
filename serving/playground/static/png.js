// PNG metadata: JSON in a text chunk with the keyword "diffctl" (PNG specification, 11.3.3.4: iTXt).

const SIGNATURE_AND_IHDR = 8 + 25;

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function chunk(type, data) {
  const encoded = new TextEncoder();
  const body = new Uint8Array([...encoded.encode(type), ...data]);
  const whole = new Uint8Array(body.length + 8);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  whole.set(body, 4);
  view.setUint32(body.length + 4, crc(body));
  return whole;
}

/** Return a PNG in base64 as a Blob with the metadata. */
export function withSettings(base64, metadata) {
  const image = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const text = new TextEncoder().encode(JSON.stringify(metadata));
  const keyword = new TextEncoder().encode("diffctl");
  const data = new Uint8Array([...keyword, 0, 0, 0, 0, 0, ...text]); // not compressed, no language
  return new Blob(
    [image.slice(0, SIGNATURE_AND_IHDR), chunk("iTXt", data), image.slice(SIGNATURE_AND_IHDR)],
    { type: "image/png" },
  );
}

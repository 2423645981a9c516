/** The bare integer loops of bench/guests/loops.S: how the image is patched, and what each is called. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** Compiled benches run from build/bench; guests stay in the sources. */
const guests = new URL('../../bench/guests/', import.meta.url)

export const LOAD_ADDRESS = 0x100000

/** In the order of the table `works` in loops.S; `scale` makes about three seconds of Debian's Bochs. */
export const loops = [
  { name: 'alu', scale: 30 },
  { name: 'sieve', scale: 600 },
  { name: 'fib', scale: 200 },
  { name: 'crc', scale: 400 },
  { name: 'copy', scale: 2400 },
  { name: 'sort', scale: 220 },
  { name: 'dispatch', scale: 120 },
  { name: 'collatz', scale: 300 },
] as const

export function guestFile(name: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(readFileSync(fileURLToPath(new URL(name, guests))))
}

/** The image with its header words `scale` (offset 8) and `which` (offset 16) set. */
export function loopImage(which: number, scale: number): Uint8Array<ArrayBuffer> {
  const image = guestFile('loops.bin')
  const view = new DataView(image.buffer)
  view.setBigUint64(8, BigInt(scale), true)
  view.setBigUint64(16, BigInt(which), true)
  return image
}

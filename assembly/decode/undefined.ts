/**
 * How far an undefined instruction reaches: the operands that its opcode has by its place in the map are fetched before #UD
 * (measured on Zen 4), so that a page fault or the limit of 15 bytes comes first.
 */

/** Bit per opcode of map 0F: no ModRM byte. Rows of 32 opcodes. */
const plain: usize = memory.data<u32>([0x00005ff0, 0xfaff00f0, 0, 0x0c800000, 0x0000ffff, 0x000007c7, 0x0000ff00, 0x80000000])

/** Where the instruction ends; `p` is behind the opcode byte. 16 + 12 readable bytes are needed. */
export function undefinedEnd(p: usize, map: u32, byte: u32, addr: u32, opsize16: bool, long: bool, rex: bool): usize {
  if (map == 1 && ((load<u32>(plain + ((byte >> 5) << 2)) >> (byte & 31)) & 1) != 0) return p
  if (map == 0) {
    // What 64-bit mode has dropped.
    if (byte == 0xd4 || byte == 0xd5) return p + 1
    if (byte == 0x9a || byte == 0xea) return p + (opsize16 ? 4 : 6)
    if (
      byte != 0x82 &&
      byte != 0x8f &&
      !(rex && (byte == 0x62 || byte == 0xc4 || byte == 0xc5)) &&
      byte != 0xc6 &&
      byte != 0xc7 &&
      byte < 0xd8
    )
      return p
    if (byte != 0xfe && byte != 0xff && byte > 0xdf) return p
  }
  // XOP (APM vol 3, 1.2.5): 8F that is not POP, but for behind REX.
  const xop = map == 0 && byte == 0x8f && !rex && (<u32>load<u8>(p) & 0x38) != 0
  const immediate = xop && (<u32>load<u8>(p) & 31) == 10
  if (xop) p += 3
  const modrm = <u32>load<u8>(p++)
  const mod = modrm >> 6
  const rm = modrm & 7
  if (mod != 3) {
    if (addr == 1) p += mod == 2 || (mod == 0 && rm == 6) ? 2 : mod
    else {
      const sib = rm == 4
      const none = mod == 0 && (sib ? <u32>load<u8>(p) & 7 : rm) == 5
      if (sib) p++
      p += mod == 2 || none ? 4 : mod
    }
  }
  if (xop) return immediate ? p + 4 : p
  if (map == 3 || (map == 0 && (byte == 0x82 || byte == 0xc6))) return p + 1
  if (map == 0 && byte == 0xc7) return p + (opsize16 ? 2 : 4)
  if (
    map == 1 &&
    ((byte >= 0x70 && byte <= 0x73) ||
      byte == 0xa4 ||
      byte == 0xac ||
      byte == 0xba ||
      byte == 0xc2 ||
      (byte >= 0xc4 && byte <= 0xc6) ||
      byte == 0x0f)
  )
    return p + 1
  return map == 1 && byte == 0x78 ? p + 2 : p
}

/**
 * Floating-point numbers with 128-bit significands for the x87 transcendental functions: value = (-1)^sign * (HIGH:LOW) / 2^127 * 2^EXP.
 * Truncating; the last few bits are noise, which 1 ulp of a 64-bit result does not see. Zero is HIGH = 0.
 * Owns the result registers W_*: valid only inside one handler.
 */
import { divide128, mulHigh, remainder } from './softfloat'

const TOP: u64 = 1 << 63

export let W_SIGN: u32 = 0
export let W_EXP: i32 = 0
export let W_HIGH: u64 = 0
export let W_LOW: u64 = 0

export function wide(sign: u32, exp: i32, high: u64, low: u64): void {
  W_SIGN = sign
  W_EXP = exp
  W_HIGH = high
  W_LOW = low
}

function normaliseWide(): void {
  if (W_HIGH == 0) {
    W_HIGH = W_LOW
    W_LOW = 0
    W_EXP -= 64
    if (W_HIGH == 0) return
  }
  const n = <u32>clz<u64>(W_HIGH)
  if (n == 0) return
  W_HIGH = (W_HIGH << n) | (W_LOW >> (64 - n))
  W_LOW <<= n
  W_EXP -= n
}

/** W *= (sign, exp, high, low). */
export function wideMul(sign: u32, exp: i32, high: u64, low: u64): void {
  let h = mulHigh(W_HIGH, high)
  let l = W_HIGH * high
  const a = mulHigh(W_HIGH, low)
  const b = mulHigh(W_LOW, high)
  l += a
  if (l < a) h++
  l += b
  if (l < b) h++
  wide(W_SIGN ^ sign, W_EXP + exp + 1, h, l)
  normaliseWide()
}

/** W += (sign, exp, high, low). */
export function wideAdd(sign: u32, exp: i32, high: u64, low: u64): void {
  if (high == 0) return
  if (W_HIGH == 0) return wide(sign, exp, high, low)
  let sa = W_SIGN
  let ea = W_EXP
  let ha = W_HIGH
  let la = W_LOW
  let eb = exp
  let hb = high
  let lb = low
  let sb = sign
  if (ea < eb || (ea == eb && (ha < hb || (ha == hb && la < lb)))) {
    sa = sign
    ea = exp
    ha = high
    la = low
    sb = W_SIGN
    eb = W_EXP
    hb = W_HIGH
    lb = W_LOW
  }
  const n = <u32>(ea - eb)
  if (n >= 128) {
    hb = 0
    lb = 0
  } else if (n >= 64) {
    lb = hb >> (n - 64)
    hb = 0
  } else if (n > 0) {
    lb = (lb >> n) | (hb << (64 - n))
    hb >>= n
  }
  if (sa == sb) {
    const l = la + lb
    const carryLow = u64(l < la)
    const t = ha + hb
    const h = t + carryLow
    if (t < ha || h < t) wide(sa, ea + 1, (h >> 1) | TOP, (l >> 1) | (h << 63))
    else wide(sa, ea, h, l)
    return
  }
  wide(sa, ea, ha - hb - u64(la < lb), la - lb)
  normaliseWide()
}

/** W /= (sign, exp, high, low), bit by bit. */
export function wideDiv(sign: u32, exp: i32, high: u64, low: u64): void {
  let h = W_HIGH
  let l = W_LOW
  let qh: u64 = 0
  let ql: u64 = 0
  let e = W_EXP - exp
  let carry = false
  if (h < high || (h == high && l < low)) {
    e--
    carry = <i64>h < 0
    h = (h << 1) | (l >> 63)
    l <<= 1
  }
  for (let i = 0; i < 128; i++) {
    qh = (qh << 1) | (ql >> 63)
    ql <<= 1
    if (carry || h > high || (h == high && l >= low)) {
      h = h - high - u64(l < low)
      l -= low
      ql |= 1
    }
    carry = <i64>h < 0
    h = (h << 1) | (l >> 63)
    l <<= 1
  }
  wide(W_SIGN ^ sign, e, qh, ql)
}

/** W /= n, 0 < n < 2^31. */
export function wideDivSmall(n: u32): void {
  const d = (<u64>n) << (<u64>clz<u32>(n) + 32)
  const shift = 31 - clz<u32>(n)
  // High:low / (n << s) with the divisor normalised; the quotient's scale is put back into the exponent.
  if (W_HIGH >= d) {
    const h = divide128(W_HIGH >> 1, (W_HIGH << 63) | (W_LOW >> 1), d)
    const l = divide128(remainder(), W_LOW << 63, d)
    wide(W_SIGN, W_EXP - shift, h, l)
  } else {
    const h = divide128(W_HIGH, W_LOW, d)
    const l = divide128(remainder(), 0, d)
    wide(W_SIGN, W_EXP - shift - 1, h, l)
  }
}

export const LN2_EXP: i32 = -1
export const LN2_HIGH: u64 = 0xb17217f7d1cf79ab
export const LN2_LOW: u64 = 0xc9e3b39803f2f6af
export const LOG2E_EXP: i32 = 0
export const LOG2E_HIGH: u64 = 0xb8aa3b295c17f0bb
export const LOG2E_LOW: u64 = 0xbe87fed0691d3e89
export const PI_EXP: i32 = 1
export const PI_HIGH: u64 = 0xc90fdaa22168c234
export const PI_LOW: u64 = 0xc4c6628b80dc1cd1

/** atan(k / 16) for k = 1..16: exponent, high, low. */
const ATAN: usize = memory.data<u64>([
  0xfffffffffffffffb, 0xffaaddb967ef4e36, 0xcb2792dc0e2e0d51, 0xfffffffffffffffc, 0xfeadd4d5617b6e32, 0xc897989f3e888ef8,
  0xfffffffffffffffd, 0xbdcbda5e72d81134, 0x7b0b4f881c9c7488, 0xfffffffffffffffd, 0xfadbafc96406eb15, 0x6dc79ef5f7a217e6,
  0xfffffffffffffffe, 0x9b13b9b83f5e5e69, 0xc5abb498d27af328, 0xfffffffffffffffe, 0xb7b0ca0f26f78473, 0x8aa32122dcfe4483,
  0xfffffffffffffffe, 0xd327761e611fe5b6, 0x427c95e9001e7136, 0xfffffffffffffffe, 0xed63382b0dda7b45, 0x6fe445ecbc3a8d03,
  0xffffffffffffffff, 0x832bf4a6d9867e2a, 0x4b6a09cb61a515c1, 0xffffffffffffffff, 0x8f005d5ef7f59f9b, 0x5c835e1665c43748,
  0xffffffffffffffff, 0x9a2f80e671bdda20, 0x4226f8e2204ff3bd, 0xffffffffffffffff, 0xa4bc7d1934f70924, 0x19a87f2a457dac9f,
  0xffffffffffffffff, 0xaeac4c38b4d8c080, 0x14725e2f3e52070a, 0xffffffffffffffff, 0xb8053e2bc2319e73, 0xcb2da55210a4443d,
  0xffffffffffffffff, 0xc0ce85b8ac526640, 0x89dd62c46e92fa25, 0xffffffffffffffff, 0xc90fdaa22168c234, 0xc4c6628b80dc1cd1,
])
/** W = atan(k / 16). */
export function wideAtan(k: u32): void {
  const p = ATAN + <usize>(k - 1) * 24
  wide(0, <i32>load<i64>(p), load<u64>(p, 8), load<u64>(p, 16))
}

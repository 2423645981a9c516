/**
 * IEEE 754 arithmetic on unpacked numbers, with x86's exception rules (SDM vol 1, 4.8-4.9): what SSE and x87 share.
 * A finite non-zero number is sign, exponent and a significand with its top bit set: (-1)^SIGN * SIG / 2^63 * 2^EXP.
 * Owns the module's result registers (SIGN, EXP, SIG, LOW) and the context (ROUNDING, MASKS, FLAGS, ...): valid only inside one handler.
 */

/** Exception flags, at their places in MXCSR and in the x87 status word. */
export const IE: u32 = 1
export const DE: u32 = 2
export const ZE: u32 = 4
export const OE: u32 = 8
export const UE: u32 = 16
export const PE: u32 = 32

export const ZERO: u32 = 0
export const NORMAL: u32 = 1
export const DENORMAL: u32 = 2
export const INFINITE: u32 = 3
export const QNAN: u32 = 4
export const SNAN: u32 = 5
/** x87 only: a significand without its integer bit where one is due. */
export const UNSUPPORTED: u32 = 6

export const TOP: u64 = 1 << 63

/** Result of the last unpack or core operation. LOW holds bits below SIG (the last one sticky). */
export let SIGN: u32 = 0
export let EXP: i32 = 0
export let SIG: u64 = 0
export let LOW: u64 = 0

/** Rounding: 0 nearest even, 1 down, 2 up, 3 towards zero. */
export let ROUNDING: u32 = 0
/** Masked exceptions (bit set = masked). */
export let MASKS: u32 = 0x3f
/** Exceptions found since begin(). */
export let FLAGS: u32 = 0
/** The last rounding increased the magnitude (C1 of x87). */
export let UP: bool = false
let FLUSH: bool = false
let DENORMALS_ARE_ZERO: bool = false

export function begin(rounding: u32, masks: u32, flush: bool, denormalsAreZero: bool): void {
  ROUNDING = rounding
  MASKS = masks
  FLUSH = flush
  DENORMALS_ARE_ZERO = denormalsAreZero
  FLAGS = 0
  UP = false
}
export function flag(bits: u32): void {
  FLAGS |= bits
}
export function dropFlags(keep: u32): void {
  FLAGS &= keep
}
export function setRounding(rounding: u32): void {
  ROUNDING = rounding
}
export function setNumber(sign: u32, exp: i32, sig: u64, low: u64): void {
  SIGN = sign
  EXP = exp
  SIG = sig
  LOW = low
}
export function setUp(up: bool): void {
  UP = up
}

/** High half of a 64 x 64 bit product. */
export function mulHigh(a: u64, b: u64): u64 {
  const al = a & 0xffffffff
  const ah = a >> 32
  const bl = b & 0xffffffff
  const bh = b >> 32
  const t = ah * bl + ((al * bl) >> 32)
  const u = al * bh + (t & 0xffffffff)
  return ah * bh + (t >> 32) + (u >> 32)
}

let REMAINDER: u64 = 0
export function remainder(): u64 {
  return REMAINDER
}
/** Quotient of high:low by d (top bit of d set, high < d); remainder() has the rest. Knuth, TAOCP 4.3.1, algorithm D. */
export function divide128(high: u64, low: u64, d: u64): u64 {
  const dh = d >> 32
  const dl = d & 0xffffffff
  let q1 = high / dh
  let r = high - q1 * dh
  while (q1 > 0xffffffff || q1 * dl > ((r << 32) | (low >> 32))) {
    q1--
    r += dh
    if (r > 0xffffffff) break
  }
  const middle = ((high << 32) | (low >> 32)) - q1 * d
  let q0 = middle / dh
  r = middle - q0 * dh
  while (q0 > 0xffffffff || q0 * dl > ((r << 32) | (low & 0xffffffff))) {
    q0--
    r += dh
    if (r > 0xffffffff) break
  }
  REMAINDER = ((middle << 32) | (low & 0xffffffff)) - q0 * d
  return (q1 << 32) + q0
}

/** SIG:LOW >>= n, jammed: bits that fall out are kept in the last bit. */
export function shiftRightJam(n: u32): void {
  if (n == 0) return
  if (n < 64) {
    const lost = LOW << (64 - n)
    LOW = (LOW >> n) | (SIG << (64 - n)) | u64(lost != 0)
    SIG >>= n
  } else if (n < 128) {
    const lost = LOW | (n == 64 ? 0 : SIG << (128 - n))
    LOW = (SIG >> (n - 64)) | u64((n == 64 ? LOW : lost) != 0)
    SIG = 0
  } else {
    LOW = u64((SIG | LOW) != 0)
    SIG = 0
  }
}

/** Sum of two numbers; SIG = 0 when they cancel. */
export function addCore(sa: u32, ea: i32, ma: u64, sb: u32, eb: i32, mb: u64): void {
  if (ea < eb || (ea == eb && ma < mb)) {
    const s = sa
    sa = sb
    sb = s
    const e = ea
    ea = eb
    eb = e
    const m = ma
    ma = mb
    mb = m
  }
  SIG = mb
  LOW = 0
  const distance = ea - eb
  shiftRightJam(distance > 200 ? 200 : <u32>distance)
  SIGN = sa
  EXP = ea
  if (sa == sb) {
    const sum = ma + SIG
    if (sum < ma) {
      LOW = (LOW >> 1) | (LOW & 1) | (sum << 63)
      SIG = (sum >> 1) | TOP
      EXP++
    } else SIG = sum
    return
  }
  const borrow = u64(LOW != 0)
  LOW = 0 - LOW
  SIG = ma - SIG - borrow
  normalise()
}

/** Shifts SIG:LOW left until the top bit is set; 0 stays 0. */
export function normalise(): void {
  if (SIG == 0) {
    SIG = LOW
    LOW = 0
    EXP -= 64
    if (SIG == 0) return
  }
  const n = <u32>clz<u64>(SIG)
  if (n == 0) return
  SIG = (SIG << n) | (LOW >> (64 - n))
  LOW <<= n
  EXP -= n
}

export function mulCore(sign: u32, ea: i32, ma: u64, eb: i32, mb: u64): void {
  SIGN = sign
  SIG = mulHigh(ma, mb)
  LOW = ma * mb
  EXP = ea + eb + 1
  normalise()
}

export function divCore(sign: u32, ea: i32, ma: u64, eb: i32, mb: u64): void {
  SIGN = sign
  if (ma >= mb) {
    EXP = ea - eb
    SIG = divide128(ma >> 1, ma << 63, mb)
  } else {
    EXP = ea - eb - 1
    SIG = divide128(ma, 0, mb)
  }
  // The next quotient bit, then sticky.
  LOW = (REMAINDER > ~REMAINDER || REMAINDER << 1 >= mb ? TOP : 0) | u64(REMAINDER != 0)
}

/** Square root of a positive number: 64 bits, LOW sticky. */
export function sqrtCore(e: i32, m: u64): void {
  const odd = (e & 1) != 0
  const high = odd ? m : m >> 1
  const low: u64 = odd ? 0 : m << 63
  let root: u64 = 0
  for (let bit: u64 = TOP; bit != 0; bit >>= 1) {
    const t = root | bit
    const h = mulHigh(t, t)
    if (h < high || (h == high && t * t <= low)) root = t
  }
  SIGN = 0
  EXP = (odd ? e - 1 : e) >> 1
  SIG = root
  const squareHigh = mulHigh(root, root)
  const square = root * root
  const rest = low - square
  const restHigh = high - squareHigh - u64(low < square)
  // The next bit of the root is set when the remainder exceeds the root.
  LOW = (restHigh != 0 || rest > root ? TOP : 0) | u64((restHigh | rest) != 0)
}

/** Whether rounding adds one unit: `rest` is compared with `half`, `low` is sticky below it. */
export function roundsUp(sign: u32, rest: u64, half: u64, low: u64, odd: bool): bool {
  if (ROUNDING == 0) return rest > half || (rest == half && (low != 0 || odd))
  if ((rest | low) == 0) return false
  return ROUNDING == 1 ? sign != 0 : ROUNDING == 2 ? sign == 0 : false
}

/** Unpacks an f32 or f64; returns its class. */
export function unpack(bits: u64, wide: bool): u32 {
  let fraction: u64
  let exponent: u32
  if (wide) {
    SIGN = <u32>(bits >> 63)
    exponent = <u32>(bits >> 52) & 0x7ff
    fraction = bits << 12
  } else {
    SIGN = <u32>(bits >> 31) & 1
    exponent = <u32>(bits >> 23) & 0xff
    fraction = bits << 41
  }
  if (exponent == (wide ? 0x7ff : 0xff)) {
    if (fraction == 0) return INFINITE
    return <i64>fraction < 0 ? QNAN : SNAN
  }
  const bias = wide ? 1023 : 127
  if (exponent != 0) {
    EXP = <i32>exponent - bias
    SIG = TOP | (fraction >> 1)
    return NORMAL
  }
  if (fraction == 0 || DENORMALS_ARE_ZERO) return ZERO
  const n = <i32>clz<u64>(fraction)
  SIG = fraction << n
  EXP = -bias - n
  return DENORMAL
}

export function packZero(sign: u32, wide: bool): u64 {
  return wide ? (<u64>sign) << 63 : (<u64>sign) << 31
}
export function packInfinity(sign: u32, wide: bool): u64 {
  return packZero(sign, wide) | (wide ? 0x7ff0000000000000 : 0x7f800000)
}
export function defaultNan(wide: bool): u64 {
  return wide ? 0xfff8000000000000 : 0xffc00000
}
export function quiet(bits: u64, wide: bool): u64 {
  return bits | (wide ? 0x0008000000000000 : 0x00400000)
}

/** Rounds SIGN, EXP, SIG:LOW to an f32 or f64 (SDM vol 1, 4.8.4, 4.9.1.4-6; tininess is detected after rounding). */
export function roundFloat(wide: bool): u64 {
  const drop: u64 = wide ? 11 : 40
  const mask = ((<u64>1) << drop) - 1
  const half = (<u64>1) << (drop - 1)
  const least = wide ? -1022 : -126
  let tiny = false
  if (EXP < least) {
    tiny = EXP < least - 1
    if (!tiny) {
      // One below the smallest normal: tiny unless rounding carries it up there.
      tiny = !((SIG & ~mask) == ~mask && roundsUp(SIGN, SIG & mask, half, LOW, true))
    }
    if (tiny) {
      if ((MASKS & UE) == 0) {
        FLAGS |= UE
        if (((SIG & mask) | LOW) != 0) FLAGS |= PE
        return 0
      }
      if (FLUSH) {
        FLAGS |= UE | PE
        return packZero(SIGN, wide)
      }
    }
    shiftRightJam(<u32>(least - EXP))
    EXP = least
  }
  const rest = SIG & mask
  const inexact = (rest | LOW) != 0
  let value = SIG >> drop
  UP = roundsUp(SIGN, rest, half, LOW, (value & 1) != 0)
  if (inexact) FLAGS |= tiny ? UE | PE : PE
  if (UP) value++
  // The integer bit of a normal number adds one to the biased exponent below.
  const limit = (<u64>1) << (64 - drop)
  if (value == limit) {
    value >>= 1
    EXP++
  }
  if (EXP > (wide ? 1023 : 127)) {
    FLAGS |= OE
    if ((MASKS & OE) != 0) FLAGS |= PE
    UP = ROUNDING == 0 || (ROUNDING == 1 && SIGN != 0) || (ROUNDING == 2 && SIGN == 0)
    return UP ? packInfinity(SIGN, wide) : packInfinity(SIGN, wide) - 1
  }
  const biased = <u64>(EXP - least)
  return packZero(SIGN, wide) | (value + (biased << (wide ? 52 : 23)))
}

/** Integer of SIGN, EXP, SIG:LOW after rounding; `bits` wide. Out of range: IE and the indefinite integer. */
export function roundInteger(bits: u32, rounding: u32): i64 {
  const indefinite: i64 = bits == 64 ? i64.MIN_VALUE : bits == 32 ? <i64>i32.MIN_VALUE : <i64>i16.MIN_VALUE
  if (EXP > 63) {
    FLAGS |= IE
    return indefinite
  }
  if (EXP < 63) shiftRightJam(<u32>(63 - EXP))
  const saved = ROUNDING
  ROUNDING = rounding
  const up = roundsUp(SIGN, LOW >> 1, (<u64>1) << 62, LOW & 1, (SIG & 1) != 0)
  ROUNDING = saved
  const inexact = LOW != 0
  let value = SIG
  if (up) {
    value++
    if (value == 0) {
      FLAGS |= IE
      return indefinite
    }
  }
  const limit: u64 = (<u64>1) << (bits - 1)
  if (SIGN != 0 ? value > limit : value >= limit) {
    FLAGS |= IE
    return indefinite
  }
  if (inexact) FLAGS |= PE
  UP = up
  return SIGN != 0 ? 0 - <i64>value : <i64>value
}

/** Unpacks an integer; false for 0. */
export function fromInteger(value: i64): bool {
  if (value == 0) return false
  SIGN = u32(value < 0)
  const m: u64 = value < 0 ? 0 - <u64>value : <u64>value
  const n = <i32>clz<u64>(m)
  SIG = m << n
  LOW = 0
  EXP = 63 - n
  return true
}

/* Compiled code with floats of every kind: run natively (-DNATIVE) and in the core, the 4 KiB of results must agree. */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

static u32 seed;
static u32 next(void) { seed = seed * 1664525u + 1013904223u; return seed; }
static double unit(void) { return next() / 4294967296.0; }

static void nbody(double *out) {
  double p[5][3], v[5][3], m[5];
  for (int i = 0; i < 5; i++) { m[i] = 0.1 + unit(); for (int k = 0; k < 3; k++) { p[i][k] = unit() * 10 - 5; v[i][k] = unit() - 0.5; } }
  for (int step = 0; step < 300; step++) {
    for (int i = 0; i < 5; i++) for (int j = i + 1; j < 5; j++) {
      double d[3], r2 = 0.01;
      for (int k = 0; k < 3; k++) { d[k] = p[i][k] - p[j][k]; r2 += d[k] * d[k]; }
      double f = 0.01 / (r2 * __builtin_sqrt(r2));
      for (int k = 0; k < 3; k++) { v[i][k] -= d[k] * m[j] * f; v[j][k] += d[k] * m[i] * f; }
    }
    for (int i = 0; i < 5; i++) for (int k = 0; k < 3; k++) p[i][k] += 0.01 * v[i][k];
  }
  for (int i = 0; i < 5; i++) for (int k = 0; k < 3; k++) out[i * 3 + k] = p[i][k];
}
static void matrix(float *out) {
  static float a[256], b[256], c[256];
  for (int i = 0; i < 256; i++) { a[i] = unit(); b[i] = unit() - 0.5; }
  for (int n = 0; n < 4; n++) {
    for (int i = 0; i < 16; i++) for (int j = 0; j < 16; j++) { float s = 0; for (int k = 0; k < 16; k++) s += a[i * 16 + k] * b[k * 16 + j]; c[i * 16 + j] = s; }
    for (int i = 0; i < 256; i++) a[i] = c[i] / (1.0f + c[i] * c[i]);
  }
  for (int i = 0; i < 256; i++) out[i] = a[i];
}
static void extended(u8 *out) {
  long double s = 0, t = 1, x = 0.7L;
  for (int i = 1; i < 200; i++) { s += 1.0L / ((long double)i * i); t *= 1 + s / 1000; }
  for (int i = 0; i < 50; i++) { long double y; __asm__("fsin" : "=t"(y) : "0"(x)); x = y + s; __asm__("fpatan" : "=t"(y) : "0"(x), "u"(t) : "st(1)"); t = y * 1.5L; }
  long long n = (long long)(s * 1e15L);
  for (int i = 0; i < 10; i++) { out[i] = ((u8 *)&s)[i]; out[16 + i] = ((u8 *)&t)[i] & (i > 3 ? 0xff : 0); out[32 + i] = i < 8 ? ((u8 *)&n)[i] : 0; }
}
static void mixed(u32 *out) {
  double tiny = 1e-300;
  for (int i = 0; i < 64; i++) {
    double x = (unit() - 0.5) * (i & 1 ? 1e20 : 1e3);
    tiny *= 1e-1;
    out[i] = (u32)(long)x ^ (u32)(int)(float)(x / 1e15) ^ (x > 0 ? 1 : 0) ^ (u32)(tiny * 1e308);
  }
  volatile double zero = 0;
  double inf = 1 / zero, nan = inf - inf;
  out[64] = nan == nan; out[65] = inf > 1e308; out[66] = nan < 1;
}
void run(u8 *out) {
  seed = 12345;
  nbody((double *)out);
  matrix((float *)(out + 256));
  extended(out + 1536);
  mixed((u32 *)(out + 1664));
  u64 h = 1469598103934665603ul;
  for (int i = 0; i < 2048; i++) h = (h ^ out[i]) * 1099511628211ul;
  *(u64 *)(out + 2048) = h;
  u32 csr; __asm__("stmxcsr %0" : "=m"(csr)); *(u32 *)(out + 2056) = csr;
}
#ifdef NATIVE
#include <unistd.h>
static u8 result[4096] __attribute__((aligned(64)));
int main(void) { u32 csr = 0x1f80; __asm__ volatile("ldmxcsr %0; fninit" : : "m"(csr)); run(result); return write(1, result, 4096) != 4096; }
#else
void start(u8 *out) { run(out); __asm__("hlt"); }
#endif

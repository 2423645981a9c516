/**
 * What Binaryen does to the core of a release: the list of `asc -O3` without merge-locals, gufa-optimizing, the second rounds of
 * ssa-nomerge and rse, and the first of simplify-globals-optimizing, which took 40 % of its time and made no loop of the benchmarks
 * faster. (Without flatten, or with fewer of the other simplify-globals-optimizing, loops lose 3-5 %.) A transform of asc: it runs
 * after the compilation, at optimizeLevel 0.
 */
const passes = `
  duplicate-function-elimination remove-unused-module-elements once-reduction inlining simplify-globals
  generate-global-effects rse vacuum code-folding ssa-nomerge local-cse remove-unused-brs remove-unused-names merge-blocks
  precompute-propagate simplify-globals-optimizing dae-optimizing
  simplify-locals-nostructure flatten vacuum simplify-locals-notee-nostructure vacuum local-cse licm reorder-locals
  optimize-instructions avoid-reinterprets dce remove-unused-brs remove-unused-names merge-blocks inlining precompute-propagate
  simplify-globals-optimizing pick-load-signs simplify-locals-notee-nostructure vacuum local-cse reorder-locals coalesce-locals
  simplify-locals coalesce-locals reorder-locals vacuum rse vacuum simplify-globals-optimizing simplify-globals-optimizing
  remove-unused-brs remove-unused-names merge-blocks optimize-instructions simplify-globals-optimizing dae-optimizing
  inlining-optimizing duplicate-import-elimination simplify-globals-optimizing precompute-propagate simplify-globals-optimizing
  simplify-globals-optimizing directize dae-optimizing inlining-optimizing code-folding code-pushing
  simplify-globals vacuum precompute-propagate inlining-optimizing directize dae-optimizing local-cse coalesce-locals
  simplify-locals vacuum inlining precompute-propagate vacuum simplify-locals coalesce-locals
  optimize-instructions remove-unused-brs remove-unused-names merge-blocks vacuum simplify-globals-optimizing
  remove-unused-brs optimize-instructions vacuum
  reorder-globals reorder-functions duplicate-function-elimination memory-packing remove-unused-module-elements
  discard-global-effects`

/** Of Binaryen's JavaScript interface, what is used here. */
interface Binaryen {
  setOptimizeLevel(level: number): void
  setShrinkLevel(level: number): void
  setDebugInfo(on: boolean): void
  setFastMath(on: boolean): void
  setAlwaysInlineMaxSize(size: number): void
  setFlexibleInlineMaxSize(size: number): void
  setOneCallerInlineMaxSize(size: number): void
  setAllowInliningFunctionsWithLoops(on: boolean): void
  setPassArgument(key: string, value: string): void
}

export default class Optimize {
  /** Set by asc. */
  declare readonly binaryen: Binaryen

  /** The settings are those of asc for -O3. */
  afterCompile(module: { runPasses(passes: readonly string[]): void }): void {
    const { binaryen } = this
    binaryen.setOptimizeLevel(4)
    binaryen.setShrinkLevel(0)
    binaryen.setDebugInfo(false)
    binaryen.setFastMath(true)
    binaryen.setAlwaysInlineMaxSize(12)
    binaryen.setFlexibleInlineMaxSize(70)
    binaryen.setOneCallerInlineMaxSize(200)
    binaryen.setAllowInliningFunctionsWithLoops(true)
    binaryen.setPassArgument('partial-inlining-ifs', '4')
    module.runPasses(passes.trim().split(/\s+/))
  }
}

// Guesses from a file's name which sequence a scan is.

const WORDS = [
  // the first row with a word of the name decides: T2_FLAIR is a FLAIR
  ['flair', ['flair', 't2f', 'tirm', 't2flair']],
  ['t1ce', ['t1ce', 't1c', 't1gd', 't1post']],
  ['t2', ['t2', 't2w']],
  ['t1', ['t1', 't1n', 't1w', 'mprage']],
];

// Returns "flair", "t1ce", "t2" or "t1"; null where the name tells none.
export function guessSequence(name) {
  const words = name.toLowerCase().split(/[^a-z0-9]+/);
  return WORDS.find(([, known]) => known.some((word) => words.includes(word)))?.[0] ?? null;
}

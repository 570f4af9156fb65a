// Says in HTML what was found in a scan, as `words.py` of the Space with a server does.

const LARGE_ML = 1;
const MOST_SMALL = 50; // of the findings below LARGE_ML that the page lists

const escape = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const list = (sentences, kind) =>
  sentences.length
    ? `<ul class="${kind}">${sentences.map((s) => `<li>${escape(s)}</li>`).join('')}</ul>`
    : '';

export function writeHeadline({ millilitres, findings }) {
  if (!findings.length) return 'No anomaly found. This does not exclude disease.';
  const large = findings.filter((row) => row.millilitres >= LARGE_ML).length;
  return (
    `${large || 'No'} finding${large === 1 ? '' : 's'} of ${LARGE_ML} mL or more; ` +
    `${millilitres.toFixed(1)} mL marked in all.`
  );
}

// The head of a result, which takes the focus.
export function writeResult(result, { name, sequence, source }) {
  const unfit = result.unfit.length
    ? `<div class="unfit" role="alert"><strong>Do not rely on this result.</strong>
      ${list(result.unfit, '')}</div>`
    : '';
  const threshold = result.threshold.toFixed(2);
  const read = sequence.toUpperCase();
  const facts = `${name} · read as ${read} · marked above a score of ${threshold}`;
  return `<section id="result" tabindex="-1" aria-labelledby="headline">${unfit}
    <h2 id="headline">${escape(writeHeadline(result))}</h2>
    <details><summary>${escape(facts)}</summary><p>${escape(source)}</p></details>
    ${list(result.warnings, 'notes')}</section>`;
}

// The table of findings, the smaller ones folded.
export function writeFindings({ findings }, disclaimer) {
  if (!findings.length) return `<p>${escape(disclaimer)}</p>`;
  const large = findings.filter((row) => row.millilitres >= LARGE_ML);
  const small = findings.filter((row) => row.millilitres < LARGE_ML);
  const table = large.length ? writeTable('Findings by volume times score', large) : '';
  if (!small.length) return table;
  const together = small.reduce((sum, row) => sum + row.millilitres, 0).toFixed(1);
  const rest = small.length > MOST_SMALL ? '<p>All are in the JSON file.</p>' : '';
  return `${table}<details${large.length ? '' : ' open'}><summary>${small.length} small
    one${small.length === 1 ? '' : 's'}, under ${LARGE_ML} mL each, ${together} mL together
    </summary>
    ${writeTable('Small findings', small.slice(0, MOST_SMALL))}${rest}</details>`;
}

function writeTable(caption, rows) {
  const lines = rows.map(
    (row) => `<tr data-point="${row.point.join(',')}" data-slice="${row.slice}">
    <td><button type="button">${row.position}</button></td><td>${row.millilitres.toFixed(1)}</td>
    <td>${row.score.toFixed(2)}</td></tr>`,
  );
  return `<table><caption>${caption}</caption><thead><tr><th>Where</th><th>mL</th><th>Score</th>
    </tr></thead>
    <tbody>${lines.join('')}</tbody></table>`;
}

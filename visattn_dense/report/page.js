'use strict';
(() => {
  // Tables: a click on a heading sorts; numbers by value, text by the language; no value comes last.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return 'value' in cell.dataset
      ? (cell.dataset.value === '' ? null : Number(cell.dataset.value))
      : cell.textContent;
  };
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number'
    ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
  for (const table of document.querySelectorAll('table.sortable')) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener('click', () => {
      const rows = [...table.tBodies[0].rows];
      const numbers = rows.some(row => 'value' in row.cells[column].dataset);
      const before = head.getAttribute('aria-sort');
      const down = before === 'none' ? numbers : before === 'ascending';
      heads.forEach(other => other.setAttribute('aria-sort', 'none'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const keyed = rows.map(row => [keyOf(row, column), row]);
      keyed.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1
        : (down ? -1 : 1) * compare(a, b));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    }));
  }

  // The class filter: whatever names its classes is hidden unless the chosen class is among them.
  const filter = document.getElementById('filter');
  const apply = () => {
    for (const item of document.querySelectorAll('[data-classes]')) {
      const classes = item.getAttribute('data-classes').split(' ');
      const hide = filter.value !== '' && !classes.includes(filter.value);
      // SVG elements have no property `hidden`.
      if (hide) item.setAttribute('hidden', ''); else item.removeAttribute('hidden');
    }
    for (const gallery of document.querySelectorAll('.gallery')) {
      gallery.querySelector('.none').hidden = !!gallery.querySelector('article:not([hidden])');
    }
  };
  filter.addEventListener('change', apply);
  // A browser may restore the choice of an earlier visit.
  apply();

  document.getElementById('theme').addEventListener('click', () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === 'dark'
      : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
  });
})();

/** Labels of classes that are asked for by name. */
import { OptionError, suggestion } from '../errors.js';

/** Most names an error suggests. */
const maxHints = 5;
/** Lists up to this long are shown whole when no name is close. */
const maxListed = 20;

/**
 * The place of a class in a list of names: as written, which tells ImageNet's dog Cardigan from the garment, or else in any
 * case. `what` is the word for it in messages. Throws OptionError with names that contain it or are close.
 */
export function classLabel(name: string, classNames: readonly string[], what = 'class'): number {
  const word = name.trim().toLowerCase();
  const lower = classNames.map((candidate) => candidate.toLowerCase());
  const exact = classNames.indexOf(name.trim());
  const label = exact >= 0 ? exact : lower.lastIndexOf(word);
  if (label >= 0) return label;
  const containing = classNames.filter((_, i) => word !== '' && lower[i].includes(word));
  const similar = suggestion(word, classNames);
  const hints = (containing.length > 0 ? containing : similar ? [similar] : []).slice(0, maxHints);
  let help = '';
  if (hints.length > 0) help = ` Did you mean ${hints.map((hint) => `"${hint}"`).join(', ')}?`;
  else if (classNames.length <= maxListed) help = ` Expected one of: ${classNames.join(', ')}.`;
  throw new OptionError(`Unknown ${what} "${name}".${help}`);
}

// How pictures come: chosen, dropped anywhere, pasted, photographed, or one of the examples.

import {cameraButtons} from "./camera.js";
import {$, note} from "./dom.js";

const MOST_AT_ONCE = 100;

// `take(files)` gets an array of at least one file.
export function listen(take) {
  const receive = files => {
    note(files.length > MOST_AT_ONCE ? `These are ${files.length} files: the first ${MOST_AT_ONCE} are taken.` : "");
    if (files.length) take([...files].slice(0, MOST_AT_ONCE));
    else note("That was no file. Save the picture as a file, then choose it or drop it here.");
  };
  chosen($("file"), receive);
  chosen($("phone-file"), receive);
  dropped(receive);
  document.onpaste = event => { if (!isForTheKey(event, event.clipboardData)) receive(event.clipboardData.files); };
  cameraButtons(file => receive([file]));
  for (const button of $("examples").querySelectorAll("button")) button.onclick = () => example(button.firstElementChild, receive);
}

function chosen(field, receive) {
  field.onchange = () => {
    const files = [...field.files];
    field.value = "";  // cleared, the field tells of the same file again
    if (files.length) receive(files);  // a dialog that was cancelled brings none
  };
}

// On the whole page: a browser opens what is dropped where no page takes it.
function dropped(receive) {
  const over = isOver => document.body.classList.toggle("over", isOver);
  document.ondragover = event => { if (!isForTheKey(event, event.dataTransfer)) { event.preventDefault(); over(true); } };
  document.ondragleave = event => { if (!event.relatedTarget) over(false); };
  document.ondrop = event => {
    over(false);
    if (!isForTheKey(event, event.dataTransfer)) { event.preventDefault(); receive(event.dataTransfer.files); }
  };
}

// Whether an event brings text to the key field, which is the field's own.
function isForTheKey(event, data) { return event.target === $("key") && data.types.includes("text/plain"); }

async function example(picture, receive) {
  try {
    const response = await fetch(picture.src);
    if (!response.ok) throw new Error(response.statusText);
    receive([new File([await response.blob()], picture.src.split("/").at(-1), {type: "image/jpeg"})]);
  } catch { note("The example cannot be loaded: the service cannot be reached."); }
}

// A photo from the camera. A phone's own camera program takes it where there is one; else the page shows the camera.

import {$} from "./dom.js";

const WANTED = {video: {facingMode: {ideal: "environment"}, width: {ideal: 1280}, height: {ideal: 960}}, audio: false};
const REASONS = {
  NotAllowedError: "The browser does not allow this page to use the camera.",
  NotFoundError: "There is no camera.",
  NotReadableError: "Another program uses the camera.",
};

// Shows the button that fits this machine; `take(file)` gets each photo.
export function cameraButtons(take) {
  // Browsers show a camera to secure pages alone; a phone's own program needs no permission.
  const hasOwnProgram = matchMedia("(pointer: coarse)").matches && "capture" in document.createElement("input");
  const canShow = isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);
  $("phone-camera").hidden = !hasOwnProgram;
  $("camera-button").hidden = hasOwnProgram || !canShow;
  const camera = new Camera(take);
  $("camera-button").onclick = () => camera.open();
}

class Camera {
  #stream = null;

  constructor(take) {
    this.take = take;
    $("cancel-camera").onclick = () => $("camera").close();
    $("shutter").onclick = () => this.#shoot();
    $("camera").onclose = () => this.#stop();  // by a button or by Escape
  }

  async open() {
    $("camera-note").textContent = "";
    $("shutter").disabled = true;
    $("camera").showModal();
    try {
      const stream = await navigator.mediaDevices.getUserMedia(WANTED);
      this.#stop();
      this.#stream = stream;
      if (!$("camera").open) return this.#stop();  // closed while the browser asked
      $("viewfinder").srcObject = stream;
      await $("viewfinder").play();
      $("shutter").disabled = false;
      $("shutter").focus();
    } catch (error) {
      $("camera-note").textContent = REASONS[error.name] ?? "The camera cannot be used.";
    }
  }

  #shoot() {
    const {videoWidth: width, videoHeight: height} = $("viewfinder");
    const canvas = Object.assign(document.createElement("canvas"), {width, height});
    canvas.getContext("2d").drawImage($("viewfinder"), 0, 0);
    canvas.toBlob(photo => {
      $("camera").close();
      this.take(new File([photo], "photo.jpg", {type: "image/jpeg"}));
    }, "image/jpeg", .92);
  }

  // The camera's light goes out.
  #stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = $("viewfinder").srcObject = null;
  }
}

"use strict";

// Every address is relative to /docs, so that the page works behind a proxy that puts a prefix before it.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // else the page would send the description to a server of Swagger's makers
});

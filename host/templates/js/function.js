import { getEnvironment } from 'wasi:cli/environment@0.2.10';

addEventListener('fetch', (event) => {
  const { TARGET } = Object.fromEntries(getEnvironment());
  event.respondWith(new Response(`hello ${TARGET ?? 'world'}\n`));
});

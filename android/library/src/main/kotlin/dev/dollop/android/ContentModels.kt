// Opens models that belong to another app or to the system, by the URI of a document picker or a content provider.
package dev.dollop.android

import android.content.Context
import android.content.res.AssetFileDescriptor
import android.net.Uri
import dev.dollop.Descriptor
import dev.dollop.Engine
import dev.dollop.EngineOptions
import dev.dollop.Plan
import java.io.FileNotFoundException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * Opens the Dollop file at a content URI.
 *
 * Foreign models can only be opened from a path, which converts them. The engine reads the file until it is closed, with
 * its own file descriptor.
 *
 * @param uri the URI; its scheme is `content:`, `file:` or `android.resource:`. The provider must return a file or a
 * part of one that begins at a multiple of 64 bytes, such as an uncompressed asset.
 * @param dispatcher runs the blocking calls of the provider, the engine, its chats and its sessions
 * @throws FileNotFoundException if the provider has no such file
 * @throws SecurityException if this app may not read it
 * @throws dev.dollop.DollopException with `Status.INVALID` if the provider streams the document instead of returning a
 * file, or if the part begins at another offset
 */
public suspend fun Engine.Companion.open(
    context: Context,
    uri: Uri,
    options: EngineOptions = EngineOptions(),
    dispatcher: CoroutineDispatcher = Dispatchers.IO,
): Engine = withFile(context, uri, dispatcher) { open(it, options, dispatcher) }

/** Plans how opening the same file would use the memory. Loads nothing. Otherwise the same as [open]. */
public suspend fun Engine.Companion.plan(
    context: Context,
    uri: Uri,
    options: EngineOptions = EngineOptions(),
    dispatcher: CoroutineDispatcher = Dispatchers.IO,
): Plan = withFile(context, uri, dispatcher) { plan(it, options, dispatcher) }

/** Calls [use] with the URI's file, on [dispatcher], because a provider may block. */
private suspend fun <T> withFile(
    context: Context,
    uri: Uri,
    dispatcher: CoroutineDispatcher,
    use: suspend (Descriptor) -> T,
): T = withContext(dispatcher) {
    val file = context.contentResolver.openAssetFileDescriptor(uri, "r")
        ?: throw FileNotFoundException("$uri: the provider returned no file")
    file.use {
        val length = it.declaredLength.takeIf { n -> n != AssetFileDescriptor.UNKNOWN_LENGTH } ?: 0
        use(Descriptor(it.parcelFileDescriptor.fd, it.startOffset, length))
    }
}
